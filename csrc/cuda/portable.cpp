#include "portable.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fastrnn::cuda {
namespace {

template <typename Function>
void with_scalar(ScalarKind scalar, Function function) {
  switch (scalar) {
    case ScalarKind::kFloat: return function(PortableKernels<float>{});
    case ScalarKind::kDouble: return function(PortableKernels<double>{});
    case ScalarKind::kHalf: return function(PortableKernels<__half>{});
    case ScalarKind::kBfloat16: return function(PortableKernels<__nv_bfloat16>{});
  }
}

}  // namespace

void portable_forward(const ForwardParams& params, cudaStream_t stream) {
  with_scalar(params.shape.scalar, [&](auto kernels) { kernels.forward(params, stream); });
}

void portable_backward(const BackwardParams& params, cudaStream_t stream) {
  with_scalar(params.shape.scalar, [&](auto kernels) { kernels.backward(params, stream); });
}

}  // namespace fastrnn::cuda
