// The operators' schemas, once: the CPU library defines them as fastrnn::*, the emulated kernels of the tests under a
// namespace of their own. Shapes are those of params.h; D directions make the lists. What is not given does not apply
// (`c0` of a GRU) or is off (`mask`).
#pragma once

namespace fastrnn {

inline constexpr const char* kRecurrenceForwardSchema =
    "recurrence_forward(int cell, int dropout_site, Tensor(a!) gates, Tensor[] w_hh, Tensor[] b_hn, Tensor[] w_hr, "
    "Tensor h0, Tensor? c0, Tensor? mask, Tensor? lengths, Tensor? offsets, Tensor(b!) y, Tensor(c!) h_n, "
    "Tensor(d!)? c_n, bool save, Tensor(e!)? cells, Tensor(f!)? n_h, Tensor(g!)? hidden, Tensor(h!)? workspace, str "
    "plan, int chunk=0, int stage=0) -> ()";

inline constexpr const char* kRecurrenceBackwardSchema =
    "recurrence_backward(int cell, int dropout_site, Tensor? gates, Tensor? cells, Tensor? n_h, Tensor y, "
    "Tensor[] w_hh, Tensor[] w_hr, Tensor h0, Tensor? c0, Tensor? mask, Tensor? lengths, Tensor? offsets, "
    "Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, int clip_mode, float clip_threshold, Tensor? grad_scale, "
    "Tensor(a!)? norms, Tensor(b!)? clipped, Tensor(c!) grad_gates, Tensor(d!)? grad_n_h, Tensor(e!)? grad_h, "
    "Tensor(f!) grad_h0, Tensor(g!)? grad_c0, Tensor(h!)? grad_bias, Tensor(i!)? h_prev, "
    "Tensor(j!)? workspace, str plan, int chunk=0, int stage=0) -> ()";

// A layer on the CPU, its input projection included: what recurrence_forward does, from x [*rows, I]; rows may have one dimension or
// more, everywhere the same. `gates` [D, *rows, G*H] is given to an LSTM or GRU that saves, and then holds the activated gates.
inline constexpr const char* kLayerForwardSchema =
    "layer_forward(int cell, int dropout_site, Tensor x, Tensor[] w_ih, Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh, "
    "Tensor[] w_hr, Tensor h0, Tensor? c0, Tensor? mask, Tensor? lengths, Tensor? offsets, Tensor(a!) y, "
    "Tensor(b!) h_n, Tensor(c!)? c_n, bool save, Tensor(d!)? gates, Tensor(e!)? cells, Tensor(f!)? n_h, "
    "Tensor(g!)? hidden) -> ()";

// Its backward, to the gradients of the input and the weights; those that are not asked for are not given. squares [D, weights],
// float64: to each weight's element the sum of squares of its gradient is added, biases excepted.
inline constexpr const char* kLayerBackwardSchema =
    "layer_backward(int cell, int dropout_site, Tensor? gates, Tensor? cells, Tensor? n_h, Tensor? hidden, Tensor y, "
    "Tensor x, Tensor[] w_ih, Tensor[] w_hh, Tensor[] w_hr, Tensor h0, Tensor? c0, Tensor? mask, Tensor? lengths, "
    "Tensor? offsets, Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, int clip_mode, float clip_threshold, "
    "Tensor? grad_scale, Tensor(a!)? norms, Tensor(b!)? clipped, Tensor(c!)? grad_x, Tensor(d!) grad_h0, "
    "Tensor(e!)? grad_c0, Tensor(f!)[] grad_w_ih, Tensor(g!)[] grad_w_hh, Tensor(h!)[] grad_b_ih, "
    "Tensor(i!)[] grad_b_hh, Tensor(j!)[] grad_w_hr, Tensor(k!)? squares) -> ()";

// out, one element: the sum of squares over all tensors and of the sums already known ([1], float64), or its root. partial
// [blocks + known], float64, is scratch: a block is kNormBlock elements of one tensor (norms.h).
inline constexpr const char* kSumOfSquaresSchema =
    "sum_of_squares(Tensor[] tensors, Tensor[] known, Tensor(a!) partial, Tensor(b!) out, bool root) -> ()";

// every tensor times min(1, max_norm / (norm + 1e-6)); untouched where that is 1
inline constexpr const char* kClipSchema = "clip_(Tensor(a!)[] tensors, Tensor norm, float max_norm) -> ()";

// factors, contiguous: 0 with probability p, else 1 / (1 - p), drawn by Philox4x32-10 with `seed` (int64, []) as the key
// (csrc/cpu/philox.h). On the CPU.
inline constexpr const char* kDropoutFactorsSchema = "dropout_factors_(Tensor(a!) factors, Tensor seed, float p) -> ()";

// What a plan has to know of a CUDA device (plan.h: DeviceLimits): major, minor, multiprocessors, shared memory of a block, then
// how many clusters of 1, 2, ... blocks run at the same time, then the architecture that the kernels' code was compiled for.
inline constexpr const char* kDeviceLimitsSchema = "device_limits(int device) -> int[]";

}  // namespace fastrnn
