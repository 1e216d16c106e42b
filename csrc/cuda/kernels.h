// The kernels of each cell and arithmetic, compiled in instantiate/. No kernel text here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../plan.h"
#include "recurrence.h"

namespace fastrnn::cuda {

// What is launched for a plan; false where it does not fit on the device at this moment.
template <typename Op, typename Cell>
struct Recurrence {
  static bool forward(const ForwardParams& params, const Plan& plan, const DeviceLimits& device, const Run& run);
  static bool backward(const BackwardParams& params, const Plan& plan, const DeviceLimits& device, const Run& run);
};

// operand.cuh
template <typename Number>
struct Tensor;
template <typename Scalar>
struct HalfNumber;
struct Tf32Number;
template <typename Scalar>
struct Fma;

// forward.cuh
struct RnnCell;
struct LstmCell;
struct GruCell;

template <typename Cell>
struct CellKernels {
  using Half = Recurrence<Tensor<HalfNumber<__half>>, Cell>;
  using Bfloat16 = Recurrence<Tensor<HalfNumber<__nv_bfloat16>>, Cell>;
  using Tf32 = Recurrence<Tensor<Tf32Number>, Cell>;
  using Float = Recurrence<Fma<float>, Cell>;
  using Double = Recurrence<Fma<double>, Cell>;
};
using RnnKernels = CellKernels<RnnCell>;
using LstmKernels = CellKernels<LstmCell>;
using GruKernels = CellKernels<GruCell>;

}  // namespace fastrnn::cuda
