// The emulated kernels as operators on CPU tensors: fastrnn_emulated::*, with the schema of fastrnn::*.
#include "../../csrc/ops/schema.h"

#include <torch/csrc/stable/library.h>

#include "../../csrc/cuda/norms.h"
#include "../../csrc/cuda/recurrence.h"
#include "../../csrc/ops/limits.h"
#include "../../csrc/ops/norms.h"
#include "../../csrc/ops/product.h"
#include "../../csrc/ops/tensors.h"
#include "device.h"
#include "grid.h"
#include "product.h"

namespace fastrnn::ops {
namespace {

// Torch has no product of 16-bit numbers with float32 results on the CPU.
std::function<void()> make_product(const cuda::Product& product) {
  const bool is_half = product.scalar == ScalarKind::kHalf || product.scalar == ScalarKind::kBfloat16;
  if (is_half) return emulator::plain_product(product);
  return torch_product(product, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// Later stages of a stack find what the first ones left.
cuda::Run run_of(const Call& call, const Shape& shape) {
  emulator::reset_device();
  if (shape.stage == 0) emulator::poison(call.workspace, static_cast<size_t>(call.workspace_bytes));
  return {nullptr, call.plan, call.workspace, call.workspace_bytes, make_product};
}

// Whatever an output held before, no kernel may count on it.
class Poisoner {
 public:
  explicit Poisoner(const Shape& shape)
      : shape_(shape),
        scalar_bytes_(shape.scalar == ScalarKind::kDouble  ? 8
                      : shape.scalar == ScalarKind::kFloat ? 4
                                                           : 2) {}
  void scalars(void* output, int64_t count) const { bytes(output, count * scalar_bytes_); }
  void accs(void* output, int64_t count) const { bytes(output, count * std::max<int64_t>(scalar_bytes_, 4)); }
  void bytes(void* output, int64_t count) const {
    if (output && shape_.stage == 0) emulator::poison(output, static_cast<size_t>(count));
  }
  int64_t per_row() const { return shape_.directions * shape_.rows; }
  int64_t per_sample() const { return shape_.directions * shape_.batch; }

 private:
  const Shape& shape_;
  int64_t scalar_bytes_;
};

void forward(const ForwardParams& params, const Call& call) {
  const Poisoner poison(params.shape);
  const int64_t H = params.shape.hidden_size, P = params.shape.state_size;
  poison.scalars(params.y, poison.per_row() * P);
  poison.scalars(params.h_n, poison.per_sample() * P);
  poison.scalars(params.c_n, poison.per_sample() * H);
  poison.accs(params.cells, poison.per_row() * H);
  poison.scalars(params.n_h, poison.per_row() * H);
  poison.scalars(params.hidden, poison.per_row() * H);
  cuda::forward(params, run_of(call, params.shape));
}
void backward(const BackwardParams& params, const Call& call) {
  const Poisoner poison(params.shape);
  const int64_t H = params.shape.hidden_size, P = params.shape.state_size, G = num_gates(params.shape.cell);
  const int64_t steps = poison.per_sample() * params.shape.steps;
  poison.accs(params.norms, steps);
  poison.bytes(params.clipped, steps);
  poison.scalars(params.grad_gates, poison.per_row() * G * H);
  poison.scalars(params.grad_n_h, poison.per_row() * H);
  poison.scalars(params.grad_h, poison.per_row() * P);
  poison.scalars(params.grad_h0, poison.per_sample() * P);
  poison.scalars(params.grad_c0, poison.per_sample() * H);
  poison.accs(params.grad_bias, params.shape.directions * (G == 3 ? 4 : G) * H);
  poison.scalars(params.h_prev, poison.per_row() * P);
  cuda::backward(params, run_of(call, params.shape));
}

void norm(const NormParams& params, int32_t) {
  emulator::reset_device();
  cuda::sum_of_squares(params, nullptr);
}
void clip_to(const ClipParams& params, int32_t) {
  emulator::reset_device();
  cuda::clip(params, nullptr);
}

std::vector<int64_t> limits_of(int64_t) { return numbers_of(cuda::current_device()); }
std::vector<int64_t> counts() {
  const emulator::Statistics& all = emulator::statistics;
  return {static_cast<int64_t>(all.launches), static_cast<int64_t>(all.arrivals), static_cast<int64_t>(all.queries)};
}
void use_device(const std::string& name) { emulator::use_device(name); }
void set_seed(int64_t seed) { emulator::set_seed(seed); }

}  // namespace
}  // namespace fastrnn::ops

namespace ops = fastrnn::ops;

STABLE_TORCH_LIBRARY(fastrnn_emulated, m) {
  m.def(fastrnn::kRecurrenceForwardSchema);
  m.def(fastrnn::kRecurrenceBackwardSchema);
  m.def(fastrnn::kSumOfSquaresSchema);
  m.def(fastrnn::kClipSchema);
  m.def(fastrnn::kDeviceLimitsSchema);
  m.def(
      "counts() -> int[]");  // since the start: launches, threads that came to a __syncthreads, queries of the runtime
  m.def("use_device(str name) -> ()");
  m.def("set_seed(int seed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn_emulated, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&ops::Operator<&ops::recurrence_forward<ops::forward>>::call));
  m.impl("recurrence_backward", TORCH_BOX(&ops::Operator<&ops::recurrence_backward<ops::backward>>::call));
  m.impl("sum_of_squares", TORCH_BOX(&ops::Operator<&ops::sum_of_squares<ops::norm>>::call));
  m.impl("clip_", TORCH_BOX(&ops::Operator<&ops::clip<ops::clip_to>>::call));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn_emulated, CompositeExplicitAutograd, m) {
  m.impl("device_limits", TORCH_BOX(&ops::limits_of));
  m.impl("counts", TORCH_BOX(&ops::counts));
  m.impl("use_device", TORCH_BOX(&ops::use_device));
  m.impl("set_seed", TORCH_BOX(&ops::set_seed));
}
