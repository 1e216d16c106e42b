// A layer around its recurrence.
#include <cstring>

#include "buffer.h"
#include "engine.h"
#include "matmul.h"

namespace fastrnn::cpu {
namespace {

// Addresses of elements of one storage type; nullptr stays.
class Elements {
 public:
  explicit Elements(ScalarKind scalar) : size_(bytes_of(scalar)) {}

  const void* operator()(const void* data, int64_t element) const {
    return data ? static_cast<const char*>(data) + element * size_ : nullptr;
  }
  void* operator()(void* data, int64_t element) const {
    return data ? static_cast<char*>(data) + element * size_ : nullptr;
  }

 private:
  int64_t size_;
};

// gates = x W_ih^T and the biases. A GRU's b_hh of the candidate is added elsewhere, so its columns are a product of their own.
void project(const LayerForwardParams& p, void* gates, int num_threads) {
  const Shape& s = p.shape;
  const Elements at(s.scalar);
  const int64_t width = num_gates(s.cell) * s.hidden_size;
  const int64_t with_b_hh = s.cell == CellKind::kGru ? 2 * s.hidden_size : width;
  for (int64_t d = 0; d < s.directions; ++d) {
    for (int64_t first = 0, last = with_b_hh; first < width; first = last, last = width) {
      MatmulParams m{};
      m.m = s.rows, m.n = last - first, m.k = p.input_size;
      m.a = p.x, m.a_row = p.input_size, m.a_col = 1;
      m.b = at(p.w_ih[d], first * p.input_size), m.b_row = 1, m.b_col = p.input_size;
      m.bias[0] = at(p.b_ih[d], first);
      m.bias[1] = first == 0 ? p.b_hh[d] : nullptr;
      m.out = at(gates, d * s.rows * width + first), m.out_row = width;
      m.scalar = s.scalar;
      matmul(m, num_threads);
    }
  }
}

// h_{t-1} beside a direction's grad_gates: where backward has written it, or y one step earlier and h0.
JointMatmulParams::Part previous_states(const LayerBackwardParams& p, int64_t d) {
  const Shape& s = p.shape;
  const Elements at(s.scalar);
  const int64_t P = s.state_size, y_row = s.directions * P;
  JointMatmulParams::Part part{};
  part.n = P;
  if (p.h_prev) {
    part.b = at(p.h_prev, d * s.rows * P), part.b_row = P, part.split = s.rows;
    return part;
  }
  const void* const h0 = at(p.h0, d * s.batch * P);
  const int64_t first = s.rows > 0 ? s.batch : 0;  // rows that have h0 for h_{t-1}
  if (d == 0) {
    part.b = h0, part.b_row = P, part.split = first;
    part.tail = p.y, part.tail_row = y_row;
  } else {
    part.b = at(p.y, first * y_row + P), part.b_row = y_row, part.split = s.rows - first;
    part.tail = h0, part.tail_row = P;
  }
  return part;
}

// Gradients of a direction's W_ih and W_hh: both multiply grad_gates, but for a GRU's candidate, whose gradient behind the reset is
// another one.
void multiply_gate_gradients(const LayerBackwardParams& p, int64_t d, int num_threads) {
  const Shape& s = p.shape;
  const Elements at(s.scalar);
  const int64_t I = p.input_size, P = s.state_size, H = s.hidden_size, width = num_gates(s.cell) * H;
  double* const squares = p.squares ? p.squares + d * p.weights : nullptr;
  JointMatmulParams::Part input{};
  input.n = I, input.b = p.x, input.b_row = I, input.split = s.rows;
  JointMatmulParams::Part state = previous_states(p, d);

  // Rows [first, last) of the weights, from columns `first`... of a [rows, a_col].
  const auto multiply = [&](int64_t first, int64_t last, const void* a, int64_t a_col, bool with_input,
                            bool with_state) {
    JointMatmulParams m{};
    m.m = last - first, m.k = s.rows;
    m.a = a, m.a_row = 1, m.a_col = a_col;
    m.scalar = s.scalar;
    if (with_input && p.grad_w_ih[d]) {
      input.out = at(p.grad_w_ih[d], first * I), input.squares = squares;
      m.parts[m.num_parts++] = input;
    }
    if (with_state && p.grad_w_hh[d]) {
      state.out = at(p.grad_w_hh[d], first * P), state.squares = squares ? squares + 1 : nullptr;
      m.parts[m.num_parts++] = state;
    }
    if (m.num_parts > 0) joint_matmul(m, num_threads);
  };
  const void* const gates = at(p.grad_gates, d * s.rows * width);
  const int64_t shared = s.cell == CellKind::kGru ? 2 * H : width;
  multiply(0, shared, gates, width, true, true);
  if (shared == width) return;
  multiply(shared, width, at(gates, shared), width, true, false);
  multiply(shared, width, at(p.grad_n_h, d * s.rows * H), H, false, true);
}

void multiply_projected_gradient(const LayerBackwardParams& p, int64_t d, int num_threads) {
  const Shape& s = p.shape;
  const Elements at(s.scalar);
  MatmulParams m{};
  m.m = s.state_size, m.n = s.hidden_size, m.k = s.rows;
  m.a = at(p.grad_h, d * s.rows * s.state_size), m.a_row = 1, m.a_col = s.state_size;
  m.b = at(p.hidden, d * s.rows * s.hidden_size), m.b_row = s.hidden_size, m.b_col = 1;
  m.out = p.grad_w_hr[d], m.out_row = s.hidden_size;
  m.squares = p.squares ? p.squares + (d + 1) * p.weights - 1 : nullptr;
  m.scalar = s.scalar;
  matmul(m, num_threads);
}

void multiply_input_gradient(const LayerBackwardParams& p, int64_t d, int num_threads) {
  const Shape& s = p.shape;
  const int64_t width = num_gates(s.cell) * s.hidden_size;
  MatmulParams m{};
  m.m = s.rows, m.n = p.input_size, m.k = width;
  m.a = Elements(s.scalar)(p.grad_gates, d * s.rows * width), m.a_row = width, m.a_col = 1;
  m.b = p.w_ih[d], m.b_row = p.input_size, m.b_col = 1;
  m.out = p.grad_x, m.out_row = p.input_size, m.accumulate = d > 0;
  m.scalar = s.scalar;
  matmul(m, num_threads);
}

// Sums of gate gradients for b_ih, and for b_hh, where a GRU's candidate has a sum of its own.
void copy_bias_gradients(const LayerBackwardParams& p, int64_t d) {
  const bool gru = p.shape.cell == CellKind::kGru;
  const int64_t acc = p.shape.scalar == ScalarKind::kDouble ? 8 : 4;
  const int64_t unit = p.shape.hidden_size * acc, gates = num_gates(p.shape.cell);
  const char* const sums = static_cast<const char*>(p.grad_bias) + d * (gru ? gates + 1 : gates) * unit;
  if (p.grad_b_ih[d]) std::memcpy(p.grad_b_ih[d], sums, gates * unit);
  if (!p.grad_b_hh[d]) return;
  std::memcpy(p.grad_b_hh[d], sums, gates * unit);
  if (gru) std::memcpy(static_cast<char*>(p.grad_b_hh[d]) + 2 * unit, sums + 3 * unit, unit);
}

// Whether the recurrence multiplies its input by itself: not for fewer rows than packing W_ih is worth, and not where it keeps half
// of the threads idle that a product by itself would use (one sample, or few units, of many features).
bool projects_inside(const LayerForwardParams& p, int num_threads) {
  const Shape& s = p.shape;
  if (s.rows <= kFew) return false;
  const int64_t useful = s.rows * num_gates(s.cell) * s.hidden_size * p.input_size / kProductsPerThread;
  return 2 * threads_of_forward(p, num_threads) > (useful < num_threads ? useful : num_threads);
}

}  // namespace

void layer_forward(const LayerForwardParams& params, int num_threads) {
  const Shape& s = params.shape;
  if (projects_inside(params, num_threads)) return forward(params, num_threads);
  LayerForwardParams projected = params;
  Buffer gates;
  if (!params.gates) {
    gates.allocate(s.directions * s.rows * num_gates(s.cell) * s.hidden_size * bytes_of(s.scalar));
    projected.gates = gates.as<void>();
  }
  project(params, projected.gates, num_threads);
  projected.x = nullptr;
  forward(projected, num_threads);
}

void layer_backward(const LayerBackwardParams& params, int num_threads) {
  LayerBackwardParams p = params;
  const Shape& s = p.shape;
  const int64_t units = s.directions * s.rows * bytes_of(s.scalar);  // bytes of one number of every row
  Buffer grad_gates, grad_n_h, grad_h, grad_bias, h_prev;
  const auto allocate = [units](Buffer& buffer, int64_t width) {
    buffer.allocate(units * width);
    return buffer.as<void>();
  };
  p.grad_gates = allocate(grad_gates, num_gates(s.cell) * s.hidden_size);
  if (s.cell == CellKind::kGru) p.grad_n_h = allocate(grad_n_h, s.hidden_size);
  if (p.w_hr[0]) p.grad_h = allocate(grad_h, s.state_size);
  const bool masked_state = p.mask && p.dropout_site == DropoutSite::kState;
  const bool odd_pairs = s.scalar == ScalarKind::kBfloat16 && s.batch % 2;  // joint_matmul: split
  if (masked_state || p.lengths || p.offsets || odd_pairs) p.h_prev = allocate(h_prev, s.state_size);
  if (p.grad_b_ih[0] || p.grad_b_hh[0]) {
    grad_bias.allocate(s.directions * (num_gates(s.cell) + 1) * s.hidden_size * 8);
    p.grad_bias = grad_bias.as<void>();
  }
  recurrence_backward(p, num_threads);
  for (int64_t d = 0; d < s.directions; ++d) {
    multiply_gate_gradients(p, d, num_threads);
    if (p.grad_w_hr[d]) multiply_projected_gradient(p, d, num_threads);
    if (p.grad_x) multiply_input_gradient(p, d, num_threads);
    if (p.grad_bias) copy_bias_gradients(p, d);
  }
}

}  // namespace fastrnn::cpu
