// The operators on CUDA devices. Large products are torch's.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../cuda/norms.h"
#include "../cuda/recurrence.h"
#include "limits.h"
#include "norms.h"
#include "product.h"
#include "tensors.h"

namespace fastrnn::ops {
namespace {

// The device is made current and work goes to the stream that is current there.
template <typename Function>
void on_device(int32_t device_index, Function function) {
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  function(static_cast<cudaStream_t>(stream));
}

template <typename Params>
void run_on(void (*function)(const Params&, const cuda::Run&), const Params& params, const Call& call) {
  const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, call.device_index);
  const auto make_product = [&](const cuda::Product& product) { return torch_product(product, device); };
  on_device(call.device_index, [&](cudaStream_t stream) {
    function(params, {stream, call.plan, call.workspace, call.workspace_bytes, make_product});
  });
}

void forward(const ForwardParams& params, const Call& call) { run_on(cuda::forward, params, call); }
void backward(const BackwardParams& params, const Call& call) { run_on(cuda::backward, params, call); }

void norm(const NormParams& params, int32_t device_index) {
  on_device(device_index, [&](cudaStream_t stream) { cuda::sum_of_squares(params, stream); });
}
void clip_to(const ClipParams& params, int32_t device_index) {
  on_device(device_index, [&](cudaStream_t stream) { cuda::clip(params, stream); });
}

std::vector<int64_t> limits_of(int64_t device_index) {
  std::vector<int64_t> numbers;
  on_device(static_cast<int32_t>(device_index), [&](cudaStream_t) { numbers = numbers_of(cuda::current_device()); });
  return numbers;
}

}  // namespace
}  // namespace fastrnn::ops

namespace ops = fastrnn::ops;

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("recurrence_forward", TORCH_BOX(&ops::Operator<&ops::recurrence_forward<ops::forward>>::call));
  m.impl("recurrence_backward", TORCH_BOX(&ops::Operator<&ops::recurrence_backward<ops::backward>>::call));
  m.impl("sum_of_squares", TORCH_BOX(&ops::Operator<&ops::sum_of_squares<ops::norm>>::call));
  m.impl("clip_", TORCH_BOX(&ops::Operator<&ops::clip<ops::clip_to>>::call));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("device_limits", TORCH_BOX(&ops::limits_of));
}
