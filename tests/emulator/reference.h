// A layer's recurrence in double, written from the textbook and not from cells.h, for programs that run without Python.
//
// Names and shapes are those of csrc/params.h.
#pragma once

#include <cmath>
#include <vector>

#include "../../csrc/params.h"

namespace fastrnn::reference {

using Vector = std::vector<double>;

struct Layer {
  Shape shape;
  DropoutSite dropout_site = DropoutSite::kState;
  bool has_mask = false, projects = false;
  std::vector<int64_t> lengths;                  // may be empty
  std::vector<int64_t> offsets;                  // not empty: packed
  Vector gates, w_hh, b_hn, w_hr, h0, c0, mask;  // of both directions, one after the other
  Vector grad_y, grad_h_n, grad_c_n;
  ClipMode clip_mode = ClipMode::kNone;
  double clip_threshold = 0, grad_scale = 1;
};

struct Result {
  Vector y, h_n, c_n;
  Vector grad_gates, grad_n_h, grad_h, grad_h0, grad_c0, grad_bias, h_prev, norms;
  std::vector<char> clipped;
};

class Runner {
 public:
  explicit Runner(const Layer& layer) : l(layer), s(layer.shape), G(num_gates(layer.shape.cell)) {}

  Result run() {
    const int64_t D = s.directions, R = s.rows, B = s.batch, H = s.hidden_size, P = s.state_size;
    const bool gru = s.cell == CellKind::kGru;
    out.y.assign(R * D * P, 0);
    out.h_n = l.h0;
    out.c_n = l.c0;
    out.grad_gates.assign(D * R * G * H, 0);
    out.grad_n_h.assign(gru ? D * R * H : 0, 0);
    out.grad_h.assign(l.projects ? D * R * P : 0, 0);
    out.grad_h0.assign(D * B * P, 0);
    out.grad_c0.assign(l.c0.size(), 0);
    out.grad_bias.assign(D * (gru ? 4 : G) * H, 0);
    out.h_prev.assign(D * R * P, 0);
    out.norms.assign(D * s.steps * B, 0);
    out.clipped.assign(D * s.steps * B, 0);
    for (int64_t d = 0; d < D; ++d)
      for (int64_t b = 0; b < B; ++b) run_sample(d, b);
    return out;
  }

 private:
  struct Step {
    Vector h_in, h_before, c_before, gate, n_h, c, hidden;  // gate: activated
  };

  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  void run_sample(int64_t d, int64_t b) {
    const int64_t H = s.hidden_size, P = s.state_size, D = s.directions, B = s.batch;
    const int64_t length = l.lengths.empty() ? s.steps : l.lengths[b];
    const auto part = [](const Vector& from, int64_t index, int64_t size) {
      return from.empty() ? Vector(size, 0) : Vector(from.begin() + index * size, from.begin() + (index + 1) * size);
    };
    const bool on_state = l.has_mask && l.dropout_site == DropoutSite::kState;
    const Vector m = l.has_mask ? part(l.mask, d * B + b, on_state ? P : H) : Vector();
    const Vector w = part(l.w_hh, d, G * H * P), w_hr = part(l.w_hr, d, P * H), b_hn = part(l.b_hn, d, H);
    const auto keep = [&](int64_t u) { return l.has_mask && !on_state ? m[u] : 1.0; };
    const auto position = [&](int64_t step) { return d == 0 ? step : length - 1 - step; };
    const auto row = [&](int64_t step) {
      return (l.offsets.empty() ? position(step) * B : l.offsets[position(step)]) + b;
    };

    Vector h = part(l.h0, d * B + b, P), c = part(l.c0, d * B + b, H);
    std::vector<Step> steps(length);
    for (int64_t t = 0; t < length; ++t) {
      Step& step = steps[t];
      step.h_before = h;
      step.c_before = c;
      step.h_in = h;
      if (on_state)
        for (int64_t k = 0; k < P; ++k) step.h_in[k] *= m[k];
      const double* x = &l.gates[(d * s.rows + row(t)) * G * H];
      step.gate.resize(G * H);
      step.n_h.resize(H);
      step.hidden.resize(H);
      for (int64_t u = 0; u < H; ++u) {
        double r[4] = {};
        for (int g = 0; g < G; ++g)
          for (int64_t k = 0; k < P; ++k) r[g] += w[(g * H + u) * P + k] * step.h_in[k];
        const auto gate = [&](int g) -> double& { return step.gate[g * H + u]; };
        const auto pre = [&](int g) { return x[g * H + u] + r[g]; };
        switch (s.cell) {
          case CellKind::kRnnTanh: step.hidden[u] = gate(0) = std::tanh(pre(0)); break;
          case CellKind::kRnnRelu: step.hidden[u] = gate(0) = std::max(pre(0), 0.0); break;
          case CellKind::kLstm:
            for (const int g : {0, 1, 3}) gate(g) = sigmoid(pre(g));
            gate(2) = std::tanh(pre(2));
            c[u] = gate(1) * c[u] + gate(0) * keep(u) * gate(2);
            step.hidden[u] = gate(3) * std::tanh(c[u]);
            break;
          case CellKind::kGru:
            gate(0) = sigmoid(pre(0));
            gate(1) = sigmoid(pre(1));
            step.n_h[u] = r[2] + b_hn[u];
            gate(2) = std::tanh(x[2 * H + u] + gate(0) * step.n_h[u]);
            step.hidden[u] = (1 - gate(1)) * keep(u) * gate(2) + gate(1) * h[u];
        }
      }
      step.c = c;
      h = step.hidden;
      if (l.projects) {
        h.assign(P, 0);
        for (int64_t p = 0; p < P; ++p)
          for (int64_t u = 0; u < H; ++u) h[p] += w_hr[p * H + u] * step.hidden[u];
      }
      std::copy(h.begin(), h.end(), &out.y[(row(t) * D + d) * P]);
    }
    std::copy(h.begin(), h.end(), &out.h_n[(d * B + b) * P]);
    if (!l.c0.empty()) std::copy(c.begin(), c.end(), &out.c_n[(d * B + b) * H]);

    Vector dh = part(l.grad_h_n, d * B + b, P), dc = part(l.grad_c_n, d * B + b, H);
    for (int64_t t = length - 1; t >= 0; --t) {
      const Step& step = steps[t];
      const int64_t at = d * s.rows + row(t);
      clip(dh, dc, (d * s.steps + position(t)) * B + b);
      if (!l.grad_y.empty())
        for (int64_t p = 0; p < P; ++p) dh[p] += l.grad_y[(row(t) * D + d) * P + p];
      Vector dhidden = dh;
      if (l.projects) {
        std::copy(dh.begin(), dh.end(), &out.grad_h[at * P]);
        dhidden.assign(H, 0);
        for (int64_t u = 0; u < H; ++u)
          for (int64_t p = 0; p < P; ++p) dhidden[u] += w_hr[p * H + u] * dh[p];
      }
      Vector dr(G * H), before(P, 0);
      for (int64_t u = 0; u < H; ++u) {
        const auto gate = [&](int g) { return step.gate[g * H + u]; };
        double dx[4] = {}, dn_h = 0;
        const double dy = dhidden[u];
        switch (s.cell) {
          case CellKind::kRnnTanh: dx[0] = dy * (1 - gate(0) * gate(0)); break;
          case CellKind::kRnnRelu: dx[0] = gate(0) > 0 ? dy : 0; break;
          case CellKind::kLstm: {
            const double squashed = std::tanh(step.c[u]);
            const double all = dc[u] + dy * gate(3) * (1 - squashed * squashed);
            dx[0] = all * keep(u) * gate(2) * gate(0) * (1 - gate(0));
            dx[1] = all * step.c_before[u] * gate(1) * (1 - gate(1));
            dx[2] = all * gate(0) * keep(u) * (1 - gate(2) * gate(2));
            dx[3] = dy * squashed * gate(3) * (1 - gate(3));
            dc[u] = all * gate(1);
            break;
          }
          case CellKind::kGru:
            dx[2] = dy * (1 - gate(1)) * keep(u) * (1 - gate(2) * gate(2));
            dx[1] = dy * (step.h_before[u] - keep(u) * gate(2)) * gate(1) * (1 - gate(1));
            dx[0] = dx[2] * step.n_h[u] * gate(0) * (1 - gate(0));
            dn_h = dx[2] * gate(0);
            before[u] = dy * gate(1);
        }
        const int64_t width = (s.cell == CellKind::kGru ? 4 : G) * H;
        for (int g = 0; g < G; ++g) {
          dr[g * H + u] = s.cell == CellKind::kGru && g == 2 ? dn_h : dx[g];
          out.grad_gates[at * G * H + g * H + u] = dx[g];
          out.grad_bias[d * width + g * H + u] += dx[g];
        }
        if (s.cell == CellKind::kGru) {
          out.grad_n_h[at * H + u] = dn_h;
          out.grad_bias[d * width + 3 * H + u] += dn_h;
        }
      }
      for (int64_t k = 0; k < P; ++k) {
        double sum = 0;
        for (int64_t i = 0; i < G * H; ++i) sum += w[i * P + k] * dr[i];
        before[k] += on_state ? sum * m[k] : sum;
        out.h_prev[at * P + k] = step.h_in[k];
      }
      dh = before;
    }
    std::copy(dh.begin(), dh.end(), &out.grad_h0[(d * B + b) * P]);
    if (!l.c0.empty()) std::copy(dc.begin(), dc.end(), &out.grad_c0[(d * B + b) * H]);
  }

  void clip(Vector& dh, Vector& dc, int64_t index) {
    std::vector<Vector*> parts{&dh};
    if (s.cell == CellKind::kLstm) parts.push_back(&dc);
    double squares = 0;
    for (const Vector* part : parts)
      for (const double x : *part) squares += x * x;
    const double norm = std::sqrt(squares) / l.grad_scale, limit = l.clip_threshold * l.grad_scale;
    out.norms[index] = norm;
    for (Vector* part : parts)
      for (double& x : *part) {
        const double before = x;
        if (l.clip_mode == ClipMode::kNorm && norm > l.clip_threshold) x *= l.clip_threshold / norm;
        if (l.clip_mode == ClipMode::kValue) x = std::min(std::max(x, -limit), limit);
        if (l.clip_mode == ClipMode::kValue && x != before) out.clipped[index] = 1;
      }
    if (l.clip_mode == ClipMode::kNorm && norm > l.clip_threshold) out.clipped[index] = 1;
  }

  const Layer& l;
  const Shape& s;
  const int G;
  Result out;
};

// [layers, rows, width] as [rows, layers, width]: y alone has the rows of all layers beside each other.
inline Vector side_by_side(const Vector& values, int64_t layers, int64_t rows) {
  const auto width = static_cast<int64_t>(values.size()) / (layers * rows);
  Vector result;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t layer = 0; layer < layers; ++layer) {
      const auto first = values.begin() + (layer * rows + row) * width;
      result.insert(result.end(), first, first + width);
    }
  return result;
}

// A layer of a stack by itself: one direction, forward in time.
inline Layer layer_of(const Layer& stack, int64_t index) {
  Layer layer = stack;
  layer.shape.directions = 1;
  layer.shape.chunk = 0;
  for (Vector* values : {&layer.gates, &layer.w_hh, &layer.b_hn, &layer.w_hr, &layer.h0, &layer.c0, &layer.mask,
                         &layer.grad_y, &layer.grad_h_n, &layer.grad_c_n}) {
    const auto size = static_cast<int64_t>(values->size()) / stack.shape.directions;
    const auto first = values->begin() + index * size;
    *values = Vector(first, first + size);
  }
  return layer;
}

inline Result run(const Layer& layer) {
  if (!layer.shape.is_stack()) return Runner(layer).run();
  Result all;
  for (int64_t index = 0; index < layer.shape.directions; ++index) {
    const Layer one = layer_of(layer, index);
    const Result result = Runner(one).run();
    for (Vector Result::* values :
         {&Result::y, &Result::h_n, &Result::c_n, &Result::grad_gates, &Result::grad_n_h, &Result::grad_h,
          &Result::grad_h0, &Result::grad_c0, &Result::grad_bias, &Result::h_prev, &Result::norms})
      (all.*values).insert((all.*values).end(), (result.*values).begin(), (result.*values).end());
    all.clipped.insert(all.clipped.end(), result.clipped.begin(), result.clipped.end());
  }
  all.y = side_by_side(all.y, layer.shape.directions, layer.shape.rows);
  return all;
}

}  // namespace fastrnn::reference
