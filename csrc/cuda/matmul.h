// Runs the recurrence around torch's matrix product (matmul.cuh), for any cell, storage type and shape. Throws
// std::runtime_error, naming kernel and shape, where the device refuses.
#pragma once

#include "../params.h"
#include "recurrence.h"

namespace fastrnn::cuda {

void matmul_forward(const ForwardParams& params, const Run& run);
void matmul_backward(const BackwardParams& params, const Run& run);

// The same for one storage type, compiled in instantiate/.
template <typename Scalar>
struct MatmulKernels {
  static void forward(const ForwardParams& params, const Run& run);
  static void backward(const BackwardParams& params, const Run& run);
};

}  // namespace fastrnn::cuda
