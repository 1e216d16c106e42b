// The end of grad_bias: partial sums added in fixed order.
#pragma once

#include <cstdint>

#include <intrinsics.cuh>

namespace fastrnn::cuda {

// out [columns]: the sums over `partial` [slices, columns]. A thread has columns.
template <typename Acc>
__global__ void sum_slices(Acc* out, const Acc* partial, int64_t num_columns, int64_t num_slices) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; column < num_columns;
       column += stride) {
    Acc sum = 0;
    for (int64_t slice = 0; slice < num_slices; ++slice) sum += partial[slice * num_columns + column];
    out[column] = sum;
  }
}

}  // namespace fastrnn::cuda
