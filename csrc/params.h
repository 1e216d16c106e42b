// What a recurrence kernel is given: raw pointers and sizes, filled by ops/ from tensors. The same structs serve the CPU
// engine and the CUDA kernels. All tensors are contiguous.
//
// Rows. The batch is either padded, [T, B]: step t of sample b is row t * B + b, and samples may end early (lengths); or
// packed as torch's PackedSequence: step t of sample b is row offsets[t] + b, samples sorted by falling length. `rows` counts
// them. A sample's steps past its length do not exist: in a padded batch their rows of y, grad_gates, grad_n_h, grad_h and
// h_prev are written as zeros, whatever the inputs hold there (it may be NaN), and their norms are 0.
//
// Directions. Direction 1 runs from each sample's last step to its first.
//
// Layers. With `chunk` the directions are layers of a stack instead, all from the first step to the last, of a padded batch without
// lengths, and a call runs one stage of a wavefront over layers and time: `chunk` steps of each layer (the last of a layer may be
// fewer), each layer one chunk behind the layer before it; in backward behind the layer after it. A stage that a layer has no chunk
// for leaves it alone. In between the caller multiplies a chunk of y with the next layer's W_ih. Calls share their workspace. grad_y is
// then [D, rows, H].
//
// Types. `scalar` is the storage type: float, double, half or bfloat16; `acc` is double for double, else float. Carried state
// stays in acc; h is rounded to scalar where it is stored or enters the recurrent product.
#pragma once

#include <cstdint>

namespace fastrnn {

constexpr int kMaxDirections = 8;  // 2, or layers of a stack

enum class CellKind : int { kRnnTanh = 0, kRnnRelu = 1, kLstm = 2, kGru = 3 };

constexpr int num_gates(CellKind cell) { return cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1; }

// Where `mask` is applied: to h_{t-1} in the recurrent product, or to the candidate (cells.h: keep).
enum class DropoutSite : int { kState = 0, kCandidate = 1 };

enum class ClipMode : int { kNone = 0, kNorm = 1, kValue = 2 };

enum class ScalarKind : int { kFloat = 0, kDouble = 1, kHalf = 2, kBfloat16 = 3 };

constexpr int64_t bytes_of(ScalarKind scalar) {
  return scalar == ScalarKind::kDouble ? 8 : scalar == ScalarKind::kFloat ? 4 : 2;
}

struct Shape {
  int64_t steps;        // T
  int64_t batch;        // B
  int64_t rows;         // T * B when padded, the sum of the lengths when packed
  int64_t hidden_size;  // H
  int64_t state_size;   // P: width of h; H unless an LSTM projects it (proj_size)
  int64_t directions;   // D: 1 or 2; of a stack the number of layers
  CellKind cell;
  ScalarKind scalar;
  int64_t chunk, stage;  // steps of a layer in a stage; 0: no stack

  constexpr bool is_stack() const { return chunk > 0; }
  constexpr bool runs_back(int64_t direction) const { return direction == 1 && !is_stack(); }
  constexpr int64_t chunks() const { return chunk > 0 ? (steps + chunk - 1) / chunk : 1; }
  constexpr int64_t stages() const { return chunk > 0 ? chunks() + directions - 1 : 1; }
};

// G: num_gates.
struct ForwardParams {
  Shape shape;
  DropoutSite dropout_site;
  // In: input projection with b_ih, and b_hh where it is added outside the reset. Out, if `save`: the activated gates that
  // backward needs (LSTM i, f, g, o; GRU r, z, n); otherwise, and for RNN, unspecified.
  void* gates;                       // scalar [D, rows, G*H]
  const void* w_hh[kMaxDirections];  // scalar [G*H, P]
  const void* b_hn[kMaxDirections];  // scalar [H]           GRU with bias alone, else nullptr
  const void* w_hr[kMaxDirections];  // scalar [P, H]        LSTM with proj_size alone, else nullptr
  const void* h0;                    // scalar [D, B, P]
  const void* c0;                    // scalar [D, B, H]     LSTM alone
  const void* mask;                  // acc [D, B, P] (state) or [D, B, H] (candidate), may be nullptr
  const int64_t* lengths;            // [B], read as clamped to [0, T]; nullptr: every sample has T steps
  const int64_t* offsets;            // [T], nullptr: padded
  void* y;                           // scalar [rows, D*P]
  void* h_n;                         // scalar [D, B, P]     state after each sample's last step; h0 for length 0
  void* c_n;                         // scalar [D, B, H]     LSTM alone
  bool save;                         // whether backward will come: then gates and what follows are written
  void* cells;                       // acc [D, rows, H]     LSTM: c_t
  void* n_h;                         // scalar [D, rows, H]  GRU: W_hn h + b_hn
  void* hidden;                      // scalar [D, rows, H]  LSTM with proj_size: o tanh(c) before the projection
};

struct BackwardParams {
  Shape shape;
  DropoutSite dropout_site;
  const void* gates;                 // scalar [D, rows, G*H]  as forward left them; RNN: nullptr
  const void* cells;                 // acc [D, rows, H]       LSTM
  const void* n_h;                   // scalar [D, rows, H]    GRU
  const void* y;                     // scalar [rows, D*P]
  const void* w_hh[kMaxDirections];  // scalar [G*H, P]
  const void* w_hr[kMaxDirections];  // scalar [P, H]          LSTM with proj_size alone
  const void* h0;                    // scalar [D, B, P]
  const void* c0;                    // scalar [D, B, H]       LSTM alone
  const void* mask;                  // acc, as in forward
  const int64_t* lengths;            // [B], may be nullptr
  const int64_t* offsets;            // [T], may be nullptr
  const void* grad_y;                // scalar [rows, D*P]     may be nullptr: zeros
  const void* grad_h_n;              // scalar [D, B, P]       may be nullptr: zeros
  const void* grad_c_n;              // scalar [D, B, H]       may be nullptr: zeros
  // The recurrent gradient r_t = (dh_rec, dc_rec): what step t gets from step t+1, before grad_y is added; at a sample's last
  // step it is (grad_h_n, grad_c_n). It is recorded, then clipped. What arrives at h0, c0 is neither.
  ClipMode clip_mode;
  double clip_threshold;    // in units of the unscaled gradient
  const float* grad_scale;  // [1]                    loss scale, may be nullptr: 1
  void* norms;              // acc [D, T, B]          ||r_t||_2 / grad_scale before clipping, may be nullptr
  bool* clipped;            // [D, T, B]              may be nullptr
  void* grad_gates;         // scalar [D, rows, G*H]  gradient of forward's `gates` input
  void* grad_n_h;           // scalar [D, rows, H]    GRU: gradient of n_h
  void* grad_h;             // scalar [D, rows, P]    LSTM with proj_size: gradient of h_t, for dW_hr
  void* grad_h0;            // scalar [D, B, P]
  void* grad_c0;            // scalar [D, B, H]       LSTM alone
  void* grad_bias;          // acc [D, K*H]           column sums of grad_gates (K = G), then for GRU of grad_n_h
                            //                        (K = 4), taken before rounding to scalar; may be nullptr
  void* h_prev;             // scalar [D, rows, P]    out: h_{t-1}, times the mask at site state: the operand of
                            //                        dW_hh; may be nullptr
};

}  // namespace fastrnn
