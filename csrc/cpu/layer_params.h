// What a whole layer is given on the CPU, where the recurrence multiplies its input by itself.
#pragma once

#include "../params.h"

namespace fastrnn::cpu {

// `gates` only leaves: with `save`, the activated gates of an LSTM or GRU; else it is nullptr. h0 and c0 may be nullptr: zeros.
struct LayerForwardParams : ForwardParams {
  int64_t input_size = 0;                 // I
  const void* x = nullptr;                // scalar [rows, I]; nullptr: `gates` holds the input projection
  const void* w_ih[kMaxDirections] = {};  // scalar [G*H, I]
  const void* b_ih[kMaxDirections] = {};  // scalar [G*H], may be nullptr
  const void* b_hh[kMaxDirections] = {};  // scalar [G*H], may be nullptr; of a GRU the last third goes to b_hn instead
};

// For layer_backward what BackwardParams has as grad_gates, grad_n_h, grad_h, grad_bias and h_prev stays inside: it is nullptr.
struct LayerBackwardParams : BackwardParams {
  int64_t input_size = 0;                 // I
  const void* x = nullptr;                // scalar [rows, I]
  const void* w_ih[kMaxDirections] = {};  // scalar [G*H, I]
  const void* hidden = nullptr;           // scalar [D, rows, H]  of forward; LSTM with proj_size alone
  void* grad_x = nullptr;                 // scalar [rows, I]     may be nullptr, as what follows
  void* grad_w_ih[kMaxDirections] = {};   // scalar [G*H, I]
  void* grad_w_hh[kMaxDirections] = {};   // scalar [G*H, P]
  void* grad_b_ih[kMaxDirections] = {};   // acc [G*H]
  void* grad_b_hh[kMaxDirections] = {};   // acc [G*H]
  void* grad_w_hr[kMaxDirections] = {};   // scalar [P, H]
  // [D, weights]: the sums of squares of the gradients of w_ih, w_hh and, last, w_hr are added, of `weights` a direction has.
  double* squares = nullptr;
  int64_t weights = 0;
};

}  // namespace fastrnn::cpu
