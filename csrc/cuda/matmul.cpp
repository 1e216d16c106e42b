#include "matmul.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fastrnn::cuda {
namespace {

template <typename Function>
void with_scalar(ScalarKind scalar, Function function) {
  switch (scalar) {
    case ScalarKind::kFloat: return function(MatmulKernels<float>{});
    case ScalarKind::kDouble: return function(MatmulKernels<double>{});
    case ScalarKind::kHalf: return function(MatmulKernels<__half>{});
    case ScalarKind::kBfloat16: return function(MatmulKernels<__nv_bfloat16>{});
  }
}

}  // namespace

void matmul_forward(const ForwardParams& params, const Run& run) {
  with_scalar(params.shape.scalar, [&](auto kernels) { kernels.forward(params, run); });
}

void matmul_backward(const BackwardParams& params, const Run& run) {
  with_scalar(params.shape.scalar, [&](auto kernels) { kernels.backward(params, run); });
}

}  // namespace fastrnn::cuda
