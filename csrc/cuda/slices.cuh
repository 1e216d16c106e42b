// Around a recurrence whose batch is cut into slices: which samples they have; and afterwards what their blocks have left as
// partial sums, added in fixed order. slices.cu launches the kernels: the library has each of them once.
#pragma once

#include "clip.cuh"
#include "rows.cuh"
#include "tiling.h"

namespace fastrnn::cuda {

constexpr int kOrderWindow = 8192;  // the work would grow with the square of the batch

// order [B], for a padded batch: a slice runs as long as its longest sample, so the longest come first, in each window; those of
// equal length in the batch's order. A warp counts who comes before a sample.
template <typename Params>
__global__ void __launch_bounds__(kThreads) order_by_length(OrderedSample* order, const Params p) {
  const Rows rows = Rows::of(p);
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (sample >= rows.batch) return;
  const int64_t first = sample / kOrderWindow * kOrderWindow, length = rows.length(sample);
  const int64_t end = first + kOrderWindow < rows.batch ? first + kOrderWindow : rows.batch;
  int num_before = 0;
  for (int64_t other = first + threadIdx.x % kWarp; other < end; other += kWarp) {
    const int64_t of_other = rows.length(other);
    num_before += of_other > length || (of_other == length && other < sample);
  }
  FASTRNN_UNROLL
  for (int mask = 1; mask < kWarp; mask *= 2) num_before += __shfl_xor_sync(0xffffffffu, num_before, mask);
  if (threadIdx.x % kWarp == 0) order[first + num_before] = {static_cast<int>(sample), static_cast<int>(length)};
}

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

// [slice_size]. Numbers without a sign, whose upper halves need no registers.
FASTRNN_DEVICE double* squares_at(const SquareSums& sums, unsigned direction, unsigned slice, unsigned step,
                                  unsigned warp) {
  const uint64_t team = direction * static_cast<unsigned>(sums.num_slices) + slice;
  return sums.squares + ((team * sums.num_steps + step) * sums.num_warps + warp) * sums.slice_size;
}

// p.norms; zeros past a length. A thread has steps of samples.
template <typename Acc>
__global__ void finish_norms(const BackwardParams p, const Workspace workspace) {
  const int64_t T = p.shape.steps, B = p.shape.batch, all = p.shape.directions * T * B;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const double scale = loss_scale(p.grad_scale);
  const SquareSums& sums = workspace.sums;
  const Rows rows = Rows::of(p);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const int64_t place = i % B, step = i / B % T, d = i / B / T;
    const OrderedSample sample = rows.sample_at(static_cast<int>(place), workspace.order);
    const bool lives = step < sample.length;
    double squares = 0;
    for (int64_t warp = 0; lives && warp < sums.num_warps; ++warp)
      squares += squares_at(sums, d, place / sums.slice_size, step, warp)[place % sums.slice_size];
    const int64_t t = lives && p.shape.runs_back(d) ? sample.length - 1 - step : step;
    *at<Acc>(p.norms, (d * T + t) * B + sample.index) = static_cast<Acc>(lives ? norm_of(squares, scale) : 0);
  }
}

}  // namespace fastrnn::cuda
