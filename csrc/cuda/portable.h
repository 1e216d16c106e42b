// Runs the portable kernels (portable.cuh) of any cell, storage type and shape on a stream of the current device. Throws
// std::runtime_error, naming kernel and shape, where the device refuses.
#pragma once

#include <cuda_runtime.h>

#include "../params.h"

namespace fastrnn::cuda {

void portable_forward(const ForwardParams& params, cudaStream_t stream);
void portable_backward(const BackwardParams& params, cudaStream_t stream);

// The same for one storage type, compiled in instantiate/.
template <typename Scalar>
struct PortableKernels {
  static void forward(const ForwardParams& params, cudaStream_t stream);
  static void backward(const BackwardParams& params, cudaStream_t stream);
};

}  // namespace fastrnn::cuda
