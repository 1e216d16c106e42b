// The operators on CUDA devices. Large products are torch's.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/portable.h"
#include "tensors.h"

namespace fastrnn::ops {
namespace {

// The device is made current and work goes to the stream that is current there.
template <typename Params>
void run_portable(void (*portable)(const Params&, cudaStream_t), const Params& params, const Call& call) {
  if (!call.plan.empty() && call.plan != "portable")
    fail("plan is \"", call.plan, "\", but the CUDA backend knows \"portable\" alone");
  const torch::stable::accelerator::DeviceGuard guard(call.device_index);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(call.device_index, &stream));
  portable(params, static_cast<cudaStream_t>(stream));
}

void forward(const ForwardParams& params, const Call& call) { run_portable(cuda::portable_forward, params, call); }
void backward(const BackwardParams& params, const Call& call) { run_portable(cuda::portable_backward, params, call); }

}  // namespace
}  // namespace fastrnn::ops

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("recurrence_forward", TORCH_BOX(&fastrnn::ops::recurrence_forward<fastrnn::ops::forward>));
  m.impl("recurrence_backward", TORCH_BOX(&fastrnn::ops::recurrence_backward<fastrnn::ops::backward>));
}
