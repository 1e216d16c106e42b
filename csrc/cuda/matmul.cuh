// The recurrence around torch's matrix product: for every shape, storage type, option and device.
//
// At every step a product computes W_hh h_{t-1} for the whole batch, in buffers of the workspace, and the kernels here do the rest:
//   forward:  begin | product, cell, (product with W_hr, project) for every step | end
//   backward: receive, (product with W_hr), cell, product for every step, the last first | end
// A thread has a unit of a sample in one direction; in receive a block has a sample, since a norm is over all its units. What is
// carried from kernel to kernel lies in the workspace, in acc.
#pragma once

#include "../params.h"
#include "cell.cuh"
#include "clip.cuh"
#include "rows.cuh"
#include "storage.cuh"
#include "tiling.h"

namespace fastrnn::cuda {

// N = D * B: a sample in one direction.
struct MatmulWorkspace {
  void* operand;  // scalar [N, P], forward; [N, G*H], backward: what is multiplied with W_hh
  void* product;  // acc [N, G*H], forward; [N, P], backward: what comes of it
  void*
      h;  // acc [N, P]  forward: h_t; backward: r_t, then the gradient of h_t, then what of it does not pass the product
  void* c;              // acc [N, H]  likewise (LSTM)
  void* inner_operand;  // scalar [N, H], forward; [N, P], backward: what is multiplied with W_hr (proj_size)
  void* inner_product;  // acc [N, P], forward; [N, H], backward
  void* bias;           // acc [B, D, K*H], backward: each sample's part of grad_bias
};

// A unit of a sample in one direction. `sample` = d * batch + b.
struct Unit {
  int64_t direction, batch_index, sample, index;
};

// Calls visit(Unit) for the units of this thread, of `width` a sample.
template <typename Visit>
FASTRNN_DEVICE void for_units(const Shape& shape, int64_t width, Visit visit) {
  const int64_t all = shape.directions * shape.batch * width, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const int64_t sample = i / width;
    visit(Unit{sample / shape.batch, sample % shape.batch, sample, i % width});
  }
}

// The step in time that a sample takes as its `step`th.
FASTRNN_DEVICE int64_t time_of(int64_t direction, int64_t step, int64_t length) {
  return direction == 0 ? step : length - 1 - step;
}

template <typename Acc, typename Params>
FASTRNN_DEVICE Acc mask_at(const Params& p, DropoutSite site, int64_t index) {
  return p.mask && p.dropout_site == site ? *at<Acc>(p.mask, index) : Acc(1);
}

// h, and what the next product sees of it: rounded to storage, times the mask.
template <typename Scalar, typename Acc>
FASTRNN_DEVICE void carry(const ForwardParams& p, const MatmulWorkspace& w, int64_t index, Acc h) {
  *at<Acc>(w.h, index) = h;
  const Acc operand = rounded<Scalar>(h) * mask_at<Acc>(p, DropoutSite::kState, index);
  store(at<Scalar>(w.operand, index), operand);
}

template <typename Scalar>
__global__ void __launch_bounds__(kThreads) matmul_begin(const ForwardParams p, const MatmulWorkspace w) {
  using Acc = AccOf<Scalar>;
  for_units(p.shape, p.shape.state_size, [&](const Unit& unit) {
    const int64_t index = unit.sample * p.shape.state_size + unit.index;
    carry<Scalar, Acc>(p, w, index, load(at<Scalar>(p.h0, index)));
  });
  if (!p.c0) return;
  for_units(p.shape, p.shape.hidden_size, [&](const Unit& unit) {
    const int64_t index = unit.sample * p.shape.hidden_size + unit.index;
    *at<Acc>(w.c, index) = load(at<Scalar>(p.c0, index));
  });
}

// Zeros past a length: y, and what the weight gradient of the projection multiplies with zeros.
template <typename Scalar>
FASTRNN_DEVICE void clear_output(const ForwardParams& p, const Rows& rows, const Unit& unit, int64_t step) {
  using Acc = AccOf<Scalar>;
  if (p.offsets) return;
  const int64_t P = p.shape.state_size, row = rows.row(step, unit.batch_index);
  if (unit.index < P) store(at<Scalar>(p.y, (row * p.shape.directions + unit.direction) * P + unit.index), Acc(0));
  if (p.save && p.w_hr[0])
    store(at<Scalar>(p.hidden, (unit.direction * p.shape.rows + row) * p.shape.hidden_size + unit.index), Acc(0));
}

template <typename Scalar, typename Cell>
__global__ void __launch_bounds__(kThreads)
    matmul_cell_forward(const ForwardParams p, const MatmulWorkspace w, const int64_t step) {
  using Acc = AccOf<Scalar>;
  constexpr int G = Cell::kGates;
  const int64_t H = p.shape.hidden_size, D = p.shape.directions;
  const Cell cell(p.shape.cell);
  const Rows rows = Rows::of(p);
  for_units(p.shape, H, [&](const Unit& unit) {
    const int64_t d = unit.direction, j = unit.index, length = rows.length(unit.batch_index);
    if (step >= length) return clear_output<Scalar>(p, rows, unit, step);
    const int64_t row = rows.row(time_of(d, step, length), unit.batch_index);
    const int64_t row_at = d * p.shape.rows + row, carried_at = unit.sample * H + j;
    Acc x[G], r[G], gates[G], extra = 0;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      x[g] = load(at<Scalar>(p.gates, (row_at * G + g) * H + j));
      r[g] = *at<Acc>(w.product, (unit.sample * G + g) * H + j);
    }
    if constexpr (Cell::kHasExtra)
      if (p.b_hn[d]) r[G - 1] += load(at<Scalar>(p.b_hn[d], j));
    State<Acc> prev{Acc(0), Acc(0)};
    if constexpr (Cell::kHasExtra) prev.h = *at<Acc>(w.h, carried_at);
    if constexpr (Cell::kHasCell) prev.c = *at<Acc>(w.c, carried_at);
    const Acc keep = mask_at<Acc>(p, DropoutSite::kCandidate, carried_at);
    const State<Acc> next = cell.forward(x, r, prev, keep, gates, extra);
    if constexpr (Cell::kHasCell) *at<Acc>(w.c, carried_at) = next.c;
    if (p.w_hr[0]) {
      store(at<Scalar>(w.inner_operand, carried_at), next.h);
    } else {
      carry<Scalar, Acc>(p, w, carried_at, next.h);
      store(at<Scalar>(p.y, (row * D + d) * H + j), next.h);
    }
    if (!p.save) return;
    if constexpr (G > 1) {
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) store(at<Scalar>(p.gates, (row_at * G + g) * H + j), gates[g]);
    }
    if constexpr (Cell::kHasCell) *at<Acc>(p.cells, row_at * H + j) = next.c;
    if constexpr (Cell::kHasExtra) store(at<Scalar>(p.n_h, row_at * H + j), extra);
    if (p.w_hr[0]) store(at<Scalar>(p.hidden, row_at * H + j), next.h);
  });
}

template <typename Scalar>
__global__ void __launch_bounds__(kThreads)
    matmul_project(const ForwardParams p, const MatmulWorkspace w, const int64_t step) {
  using Acc = AccOf<Scalar>;
  const int64_t P = p.shape.state_size, D = p.shape.directions;
  const Rows rows = Rows::of(p);
  for_units(p.shape, P, [&](const Unit& unit) {
    const int64_t length = rows.length(unit.batch_index);
    if (step >= length) return;
    const int64_t row = rows.row(time_of(unit.direction, step, length), unit.batch_index);
    const Acc h = *at<Acc>(w.inner_product, unit.sample * P + unit.index);
    carry<Scalar, Acc>(p, w, unit.sample * P + unit.index, h);
    store(at<Scalar>(p.y, (row * D + unit.direction) * P + unit.index), h);
  });
}

template <typename Scalar>
__global__ void __launch_bounds__(kThreads) matmul_end_forward(const ForwardParams p, const MatmulWorkspace w) {
  using Acc = AccOf<Scalar>;
  for_units(p.shape, p.shape.state_size, [&](const Unit& unit) {
    const int64_t index = unit.sample * p.shape.state_size + unit.index;
    store(at<Scalar>(p.h_n, index), *at<Acc>(w.h, index));
  });
  if (!p.c_n) return;
  for_units(p.shape, p.shape.hidden_size, [&](const Unit& unit) {
    const int64_t index = unit.sample * p.shape.hidden_size + unit.index;
    store(at<Scalar>(p.c_n, index), *at<Acc>(w.c, index));
  });
}

// Sum over the block, the same in every thread. blockDim.x is a power of two.
FASTRNN_DEVICE double block_sum(double value, double* partial) {
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = partial[0];
  __syncthreads();
  return sum;
}

// A unit of r_t, the gradient that step `step` gets from the step after it.
template <typename Scalar>
FASTRNN_DEVICE AccOf<Scalar> received_h(const BackwardParams& p, const MatmulWorkspace& w, bool is_last,
                                        int64_t index) {
  using Acc = AccOf<Scalar>;
  if (is_last) return p.grad_h_n ? load(at<Scalar>(p.grad_h_n, index)) : Acc(0);
  const Acc product = *at<Acc>(w.product, index) * mask_at<Acc>(p, DropoutSite::kState, index);
  return p.w_hr[0] ? product : *at<Acc>(w.h, index) + product;
}
template <typename Scalar>
FASTRNN_DEVICE AccOf<Scalar> received_c(const BackwardParams& p, const MatmulWorkspace& w, bool is_last,
                                        int64_t index) {
  using Acc = AccOf<Scalar>;
  if (!is_last) return *at<Acc>(w.c, index);
  return p.grad_c_n ? load(at<Scalar>(p.grad_c_n, index)) : Acc(0);
}

// r_t of a sample in one direction, by a block: received, recorded, clipped; then the gradient of h_t. `partial`: [threads].
template <typename Scalar>
FASTRNN_DEVICE void receive(const BackwardParams& p, const MatmulWorkspace& w, int64_t step, int64_t sample,
                            double* partial) {
  using Acc = AccOf<Scalar>;
  const int64_t H = p.shape.hidden_size, P = p.shape.state_size, D = p.shape.directions;
  const int64_t d = sample / p.shape.batch, b = sample % p.shape.batch;
  const Rows rows = Rows::of(p);
  const int64_t length = rows.length(b), t = step < length ? time_of(d, step, length) : step;
  const int64_t norm_at = (d * p.shape.steps + t) * p.shape.batch + b;
  if (step >= length) {
    if (p.norms && threadIdx.x == 0) *at<Acc>(p.norms, norm_at) = 0;
    if (p.clipped && threadIdx.x == 0) p.clipped[norm_at] = false;
    if (p.offsets) return;
    if (!p.w_hr[0]) return;
    const int64_t row = d * p.shape.rows + rows.row(step, b);
    for (int64_t j = threadIdx.x; j < P; j += blockDim.x) store(at<Scalar>(p.grad_h, row * P + j), Acc(0));
    return;
  }
  const int64_t row = rows.row(t, b);
  const bool is_last = step + 1 == length;
  const auto for_own = [&](auto visit) {
    for (int64_t j = threadIdx.x; j < P; j += blockDim.x) visit(*at<Acc>(w.h, sample * P + j));
    if (p.cells)
      for (int64_t j = threadIdx.x; j < H; j += blockDim.x) visit(*at<Acc>(w.c, sample * H + j));
  };

  for (int64_t j = threadIdx.x; j < P; j += blockDim.x)
    *at<Acc>(w.h, sample * P + j) = received_h<Scalar>(p, w, is_last, sample * P + j);
  if (p.cells)
    for (int64_t j = threadIdx.x; j < H; j += blockDim.x)
      *at<Acc>(w.c, sample * H + j) = received_c<Scalar>(p, w, is_last, sample * H + j);

  const double scale = loss_scale(p.grad_scale);
  bool clipped = false;
  if (p.norms || p.clip_mode == ClipMode::kNorm) {
    double squares = 0;
    for_own([&](Acc& x) { squares += static_cast<double>(x) * x; });
    const double norm = norm_of(block_sum(squares, partial), scale);
    if (p.norms && threadIdx.x == 0) *at<Acc>(p.norms, norm_at) = static_cast<Acc>(norm);
    // not where the norm is not finite
    clipped = p.clip_mode == ClipMode::kNorm && norm > p.clip_threshold && norm * 0 == 0;
    const Acc factor = static_cast<Acc>(p.clip_threshold / norm);
    if (clipped) for_own([&](Acc& x) { x *= factor; });
  }
  if (p.clip_mode == ClipMode::kValue) {
    const Acc limit = static_cast<Acc>(p.clip_threshold * scale);
    double count = 0;
    for_own([&](Acc& x) { count += clamp_value(limit, x); });
    if (p.clipped) clipped = block_sum(count, partial) > 0;
  }
  if (p.clipped && threadIdx.x == 0) p.clipped[norm_at] = clipped;

  for (int64_t j = threadIdx.x; j < P; j += blockDim.x) {
    Acc& grad_h = *at<Acc>(w.h, sample * P + j);
    if (p.grad_y) grad_h += load(at<Scalar>(p.grad_y, (row * D + d) * P + j));
    if (!p.w_hr[0]) continue;
    store(at<Scalar>(p.grad_h, (d * p.shape.rows + row) * P + j), grad_h);
    store(at<Scalar>(w.inner_operand, sample * P + j), grad_h);
  }
}

template <typename Scalar>
__global__ void __launch_bounds__(kThreads)
    matmul_receive(const BackwardParams p, const MatmulWorkspace w, const int64_t step) {
  FASTRNN_SMEM(buffer);
  double* partial = reinterpret_cast<double*>(buffer);
  const int64_t samples = p.shape.directions * p.shape.batch;
  for (int64_t sample = blockIdx.x; sample < samples; sample += gridDim.x) receive<Scalar>(p, w, step, sample, partial);
}

// Zeros past a length: what the products that follow multiply may not be NaN.
template <typename Scalar, typename Cell>
FASTRNN_DEVICE void clear_gradients(const BackwardParams& p, const Rows& rows, const Unit& unit, int64_t step) {
  using Acc = AccOf<Scalar>;
  if (p.offsets) return;
  const int64_t H = p.shape.hidden_size, P = p.shape.state_size, j = unit.index;
  const int64_t row_at = unit.direction * p.shape.rows + rows.row(step, unit.batch_index);
  FASTRNN_UNROLL
  for (int g = 0; g < Cell::kGates; ++g) store(at<Scalar>(p.grad_gates, (row_at * Cell::kGates + g) * H + j), Acc(0));
  if constexpr (Cell::kHasExtra) store(at<Scalar>(p.grad_n_h, row_at * H + j), Acc(0));
  if (p.h_prev && j < P) store(at<Scalar>(p.h_prev, row_at * P + j), Acc(0));
}

template <typename Scalar, typename Cell>
__global__ void __launch_bounds__(kThreads)
    matmul_cell_backward(const BackwardParams p, const MatmulWorkspace w, const int64_t step) {
  using Acc = AccOf<Scalar>;
  constexpr int G = Cell::kGates;
  constexpr int kSums = Cell::kHasExtra ? G + 1 : G;  // of grad_bias, a unit
  const int64_t H = p.shape.hidden_size, P = p.shape.state_size, D = p.shape.directions;
  const bool projects = p.w_hr[0] != nullptr;
  const Cell cell(p.shape.cell);
  const Rows rows = Rows::of(p);
  for_units(p.shape, H, [&](const Unit& unit) {
    const int64_t d = unit.direction, b = unit.batch_index, j = unit.index, length = rows.length(b);
    if (step >= length) return clear_gradients<Scalar, Cell>(p, rows, unit, step);
    const int64_t row = rows.row(time_of(d, step, length), b), row_at = d * p.shape.rows + row;
    const int64_t row_before = step > 0 ? rows.row(time_of(d, step - 1, length), b) : 0;
    const int64_t carried_at = unit.sample * H + j;
    const auto h_prev = [&] {
      return load(step > 0 ? at<Scalar>(p.y, (row_before * D + d) * P + j) : at<Scalar>(p.h0, unit.sample * P + j));
    };
    State<Acc> grad{Acc(0), Acc(0)}, prev{Acc(0), Acc(0)}, next{Acc(0), Acc(0)};
    grad.h = *at<Acc>(projects ? w.inner_product : w.h, carried_at);
    Acc gates[G] = {}, extra = 0, grad_x[G], grad_r[G];
    if constexpr (G > 1) {
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) gates[g] = load(at<Scalar>(p.gates, (row_at * G + g) * H + j));
    }
    if constexpr (Cell::kHasCell) {
      grad.c = *at<Acc>(w.c, carried_at);
      next.c = *at<Acc>(p.cells, row_at * H + j);
      prev.c =
          step > 0 ? *at<Acc>(p.cells, (d * p.shape.rows + row_before) * H + j) : load(at<Scalar>(p.c0, carried_at));
    } else {
      prev.h = h_prev();
      next.h = load(at<Scalar>(p.y, (row * D + d) * P + j));
    }
    if constexpr (Cell::kHasExtra) extra = load(at<Scalar>(p.n_h, row_at * H + j));
    const Acc keep = mask_at<Acc>(p, DropoutSite::kCandidate, carried_at);
    const State<Acc> direct = cell.backward(grad, gates, extra, prev, next, keep, grad_x, grad_r);
    if (!projects) *at<Acc>(w.h, carried_at) = direct.h;
    if constexpr (Cell::kHasCell) *at<Acc>(w.c, carried_at) = direct.c;
    Acc* bias = at<Acc>(w.bias, (b * D + d) * kSums * H + j);
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      store(at<Scalar>(w.operand, (unit.sample * G + g) * H + j), grad_r[g]);
      store(at<Scalar>(p.grad_gates, (row_at * G + g) * H + j), grad_x[g]);
      bias[g * H] += grad_x[g];
    }
    if constexpr (Cell::kHasExtra) {
      store(at<Scalar>(p.grad_n_h, row_at * H + j), grad_r[G - 1]);
      bias[G * H] += grad_r[G - 1];
    }
    if (p.h_prev && j < P)
      store(at<Scalar>(p.h_prev, row_at * P + j), h_prev() * mask_at<Acc>(p, DropoutSite::kState, unit.sample * P + j));
  });
}

// The gradient of the initial state, neither recorded nor clipped.
template <typename Scalar>
__global__ void __launch_bounds__(kThreads) matmul_end_backward(const BackwardParams p, const MatmulWorkspace w) {
  const Rows rows = Rows::of(p);
  for_units(p.shape, p.shape.state_size, [&](const Unit& unit) {
    const int64_t index = unit.sample * p.shape.state_size + unit.index;
    store(at<Scalar>(p.grad_h0, index), received_h<Scalar>(p, w, rows.length(unit.batch_index) == 0, index));
  });
  if (!p.grad_c0) return;  // not `cells`, which is null where a packed batch has no row
  for_units(p.shape, p.shape.hidden_size, [&](const Unit& unit) {
    const int64_t index = unit.sample * p.shape.hidden_size + unit.index;
    store(at<Scalar>(p.grad_c0, index), received_c<Scalar>(p, w, rows.length(unit.batch_index) == 0, index));
  });
}

}  // namespace fastrnn::cuda
