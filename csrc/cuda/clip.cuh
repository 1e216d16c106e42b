// How the recurrent gradient is measured and clipped (params.h: BackwardParams).
#pragma once

#include <intrinsics.cuh>

namespace fastrnn::cuda {

FASTRNN_DEVICE double loss_scale(const float* grad_scale) { return grad_scale ? *grad_scale : 1.0; }

// The norm that is recorded and clipped, from a sum of squares in double, which holds the square of every float.
FASTRNN_DEVICE double norm_of(double squares, double scale) { return sqrt(squares) / scale; }

// Clamps x as torch.clamp does: NaN stays. Whether that changed it.
template <typename Acc>
FASTRNN_DEVICE bool clamp_value(Acc limit, Acc& x) {
  if (!(x > limit || x < -limit)) return false;
  x = x > 0 ? limit : -limit;
  return true;
}

}  // namespace fastrnn::cuda
