// Norm and scaling of many tensors together, on a stream of the current device. Throw std::runtime_error where the device refuses.
#pragma once

#include <cuda_runtime.h>

#include "../norms.h"

namespace fastrnn::cuda {

void sum_of_squares(const NormParams& params, cudaStream_t stream);

void clip(const ClipParams& params, cudaStream_t stream);

}  // namespace fastrnn::cuda
