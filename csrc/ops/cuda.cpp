// The operators on CUDA devices. Large products are torch's.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/recurrence.h"
#include "tensors.h"

namespace fastrnn::ops {
namespace {

// The device is made current and work goes to the stream that is current there.
template <typename Params>
void run_on(void (*function)(const Params&, const cuda::Run&), const Params& params, const Call& call) {
  const torch::stable::accelerator::DeviceGuard guard(call.device_index);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(call.device_index, &stream));
  function(params, {static_cast<cudaStream_t>(stream), call.plan, call.workspace, call.workspace_bytes});
}

void forward(const ForwardParams& params, const Call& call) { run_on(cuda::forward, params, call); }
void backward(const BackwardParams& params, const Call& call) { run_on(cuda::backward, params, call); }

}  // namespace
}  // namespace fastrnn::ops

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("recurrence_forward", TORCH_BOX(&fastrnn::ops::recurrence_forward<fastrnn::ops::forward>));
  m.impl("recurrence_backward", TORCH_BOX(&fastrnn::ops::recurrence_backward<fastrnn::ops::backward>));
}
