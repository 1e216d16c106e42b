// What the blocks of a recurrence leave as partial sums, added in fixed order afterwards.
#pragma once

#include "clip.cuh"
#include "rows.cuh"
#include "tiling.h"

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

// [slice_size]
FASTRNN_DEVICE double* squares_at(const SquareSums& sums, int64_t direction, int64_t slice, int64_t step,
                                  int64_t warp) {
  return sums.squares +
         (((direction * sums.num_slices + slice) * sums.num_steps + step) * sums.num_warps + warp) * sums.slice_size;
}

// p.norms; zeros past a length. A thread has steps of samples.
template <typename Acc>
__global__ void finish_norms(const BackwardParams p, const SquareSums sums) {
  const int64_t T = p.shape.steps, B = p.shape.batch, all = p.shape.directions * T * B;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const double scale = loss_scale(p.grad_scale);
  const Rows rows = Rows::of(p);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const int64_t sample = i % B, step = i / B % T, d = i / B / T, length = rows.length(sample);
    const bool lives = step < length;
    double squares = 0;
    for (int64_t warp = 0; lives && warp < sums.num_warps; ++warp)
      squares += squares_at(sums, d, sample / sums.slice_size, step, warp)[sample % sums.slice_size];
    const int64_t t = lives && d == 1 ? length - 1 - step : step;
    *at<Acc>(p.norms, (d * T + t) * B + sample) = static_cast<Acc>(lives ? norm_of(squares, scale) : 0);
  }
}

}  // namespace fastrnn::cuda
