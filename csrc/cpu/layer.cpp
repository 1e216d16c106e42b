// A layer around its recurrence.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

#include "batch.h"
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

// Where a direction's rows lie that the gradients of its weights are summed over: those of all steps that exist, run by run. A run has
// the samples of one row group of the recurrence, whose gradients are in the cache of the thread that has computed them.
class SummedRows {
 public:
  SummedRows(const LayerBackwardParams& p, int num_groups) : p_(p), num_groups_(num_groups) {
    const Shape& s = p.shape;
    batch_.emplace(s, p.lengths, p.offsets, num_groups, /*atom_unit=*/0, /*gap=*/0);
    memory_.allocate(4 * s.rows * static_cast<int64_t>(sizeof(void*)));
    gates_ = memory_.as<const void*>();
    n_h_ = gates_ + s.rows, x_ = n_h_ + s.rows, h_ = x_ + s.rows;
    std::vector<int64_t> group_ends;
    for (int index = 0; index < num_groups; ++index) {
      const RowGroup group = batch_->group(index);
      group_ends.push_back(count_ = std::accumulate(group.lengths, group.lengths + group.count, count_));
    }
    // Where a run is short, or its sums are large, adding them takes longer than is won; then groups share one.
    const int64_t sums = num_gates(s.cell) * s.hidden_size * (p.input_size + s.state_size) * bytes_of(s.scalar);
    const int64_t most = std::min({int64_t{num_groups}, count_ / kRowsOfRun, 1 + kBytesOfSums / sums});
    const int64_t num_runs = std::max<int64_t>(most, 1);
    for (int64_t run = 0; run < num_runs; ++run)
      run_ends_.push_back(group_ends[share_of(num_groups, num_runs, run).end - 1]);
  }

  void find(int64_t d) {
    const Shape& s = p_.shape;
    const Elements at(s.scalar);
    const int64_t P = s.state_size, H = s.hidden_size, width = num_gates(s.cell) * H;
    int64_t k = 0;
    for (int group = 0; group < num_groups_; ++group) {
      for_each_row(batch_->group(group), [&](int64_t t, int64_t sample, int64_t row, int64_t length) {
        const int64_t prev = d == 0 ? t - 1 : t + 1, own = d * s.rows + row;
        gates_[k] = at(p_.grad_gates, own * width);
        n_h_[k] = at(p_.grad_n_h, own * H);
        x_[k] = at(p_.x, row * p_.input_size);
        h_[k] = p_.h_prev                    ? at(p_.h_prev, own * P)
                : 0 <= prev && prev < length ? at(p_.y, (batch_->row(prev, sample) * s.directions + d) * P)
                                             : at(p_.h0, (d * s.batch + sample) * P);
        ++k;
      });
    }
  }

  const void* const* gates() const { return gates_; }
  const void* const* n_h() const { return n_h_; }
  const void* const* x() const { return x_; }
  const void* const* h() const { return h_; }  // h_{t-1}
  int64_t count() const { return count_; }
  const std::vector<int64_t>& run_ends() const { return run_ends_; }

 private:
  static constexpr int64_t kRowsOfRun = 128;
  static constexpr int64_t kBytesOfSums = int64_t{64} << 20;  // beside the output

  // Calls function(step, sample, row, the sample's length).
  template <typename Function>
  void for_each_row(const RowGroup& group, Function function) const {
    int64_t live = group.count;
    for (int64_t t = 0; t < group.steps(); ++t) {
      while (group.lengths[live - 1] <= t) --live;
      for (int64_t i = 0; i < live; ++i)
        function(t, group.samples[i], batch_->row(t, group.samples[i]), group.lengths[i]);
    }
  }

  const LayerBackwardParams& p_;
  const int num_groups_;
  std::optional<Batch> batch_;
  Buffer memory_;
  const void **gates_, **n_h_, **x_, **h_;
  int64_t count_ = 0;
  std::vector<int64_t> run_ends_;
};

// Gradients of a direction's W_ih and W_hh: both multiply grad_gates, but for a GRU's candidate, whose gradient behind the reset is
// another one.
void multiply_gate_gradients(const LayerBackwardParams& p, int64_t d, const SummedRows& rows, int num_threads) {
  const Shape& s = p.shape;
  const Elements at(s.scalar);
  const int64_t I = p.input_size, P = s.state_size, H = s.hidden_size, width = num_gates(s.cell) * H;
  double* const squares = p.squares ? p.squares + d * p.weights : nullptr;

  // Rows [first, last) of the weights, from columns `column`... of rows `a`.
  const auto multiply = [&](int64_t first, int64_t last, const void* const* a, int64_t column, bool with_input,
                            bool with_state) {
    JointMatmulParams m{};
    m.m = last - first, m.k = rows.count();
    m.a = a, m.a_first = column;
    m.num_runs = static_cast<int>(rows.run_ends().size()), m.run_ends = rows.run_ends().data();
    m.scalar = s.scalar;
    if (with_input && p.grad_w_ih[d]) m.parts[m.num_parts++] = {I, rows.x(), at(p.grad_w_ih[d], first * I), squares};
    if (with_state && p.grad_w_hh[d])
      m.parts[m.num_parts++] = {P, rows.h(), at(p.grad_w_hh[d], first * P), squares ? squares + 1 : nullptr};
    if (m.num_parts > 0) joint_matmul(m, num_threads);
  };
  const int64_t shared = s.cell == CellKind::kGru ? 2 * H : width;
  multiply(0, shared, rows.gates(), 0, true, true);
  if (shared == width) return;
  multiply(shared, width, rows.gates(), shared, true, false);
  multiply(shared, width, rows.n_h(), 0, false, true);
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
  return 2 * split_of_forward(s, num_threads).threads() > (useful < num_threads ? useful : num_threads);
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
  if (masked_state) p.h_prev = allocate(h_prev, s.state_size);
  if (p.grad_b_ih[0] || p.grad_b_hh[0]) {
    grad_bias.allocate(s.directions * (num_gates(s.cell) + 1) * s.hidden_size * 8);
    p.grad_bias = grad_bias.as<void>();
  }
  const Split split = split_of_backward(s, num_threads);
  // A direction adds to the other's gradient of the input when that is complete. A thread of some units would read all gates' gradients.
  const bool multiplies_inside = s.directions == 1 && split.unit_groups == 1 && p.input_size > kFew;
  if (!multiplies_inside) p.grad_x = nullptr;
  backward(p, num_threads);
  p.grad_x = multiplies_inside ? nullptr : params.grad_x;
  std::optional<SummedRows> rows;
  if (p.grad_w_ih[0] || p.grad_w_hh[0]) rows.emplace(p, split.row_groups);
  for (int64_t d = 0; d < s.directions; ++d) {
    if (rows) {
      rows->find(d);
      multiply_gate_gradients(p, d, *rows, num_threads);
    }
    if (p.grad_w_hr[d]) multiply_projected_gradient(p, d, num_threads);
    if (p.grad_x) multiply_input_gradient(p, d, num_threads);
    if (p.grad_bias) copy_bias_gradients(p, d);
  }
}

}  // namespace fastrnn::cpu
