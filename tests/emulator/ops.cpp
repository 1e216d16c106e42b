// The emulated kernels as operators on CPU tensors: fastrnn_emulated::*, with the schema of fastrnn::*.
#include "../../csrc/ops/schema.h"

#include "../../csrc/cuda/norms.h"
#include "../../csrc/cuda/recurrence.h"
#include "../../csrc/ops/norms.h"
#include "../../csrc/ops/tensors.h"
#include "device.h"
#include "grid.h"

namespace fastrnn::ops {
namespace {

void forward(const ForwardParams& params, const Call& call) {
  emulator::reset_device();
  cuda::forward(params, {nullptr, call.plan, call.workspace, call.workspace_bytes});
}
void backward(const BackwardParams& params, const Call& call) {
  emulator::reset_device();
  cuda::backward(params, {nullptr, call.plan, call.workspace, call.workspace_bytes});
}

void norm(const NormParams& params, int32_t) {
  emulator::reset_device();
  cuda::sum_of_squares(params, nullptr);
}
void clip_to(const ClipParams& params, int32_t) {
  emulator::reset_device();
  cuda::clip(params, nullptr);
}

void use_device(const std::string& name) { emulator::use_device(name); }
void set_seed(int64_t seed) { emulator::set_seed(seed); }

}  // namespace
}  // namespace fastrnn::ops

STABLE_TORCH_LIBRARY(fastrnn_emulated, m) {
  m.def(fastrnn::kRecurrenceForwardSchema);
  m.def(fastrnn::kRecurrenceBackwardSchema);
  m.def(fastrnn::kSumOfSquaresSchema);
  m.def(fastrnn::kClipSchema);
  m.def("use_device(str name) -> ()");
  m.def("set_seed(int seed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn_emulated, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&fastrnn::ops::recurrence_forward<fastrnn::ops::forward>));
  m.impl("recurrence_backward", TORCH_BOX(&fastrnn::ops::recurrence_backward<fastrnn::ops::backward>));
  m.impl("sum_of_squares", TORCH_BOX(&fastrnn::ops::sum_of_squares<fastrnn::ops::norm>));
  m.impl("clip_", TORCH_BOX(&fastrnn::ops::clip<fastrnn::ops::clip_to>));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn_emulated, CompositeExplicitAutograd, m) {
  m.impl("use_device", TORCH_BOX(&fastrnn::ops::use_device));
  m.impl("set_seed", TORCH_BOX(&fastrnn::ops::set_seed));
}
