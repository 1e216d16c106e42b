// The operators of a whole layer, which the CPU alone has.
#pragma once

#include "../cpu/layer_params.h"
#include "tensors.h"

namespace fastrnn::ops {

inline Sizes row_sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return Sizes(sizes.begin(), sizes.end() - 1);
}

// x [*rows, I] leads, and whatever has rows has x's, in one dimension or more; the hidden size is that of W_hh.
inline Shape read_layer_shape(int64_t cell, const Tensor& x, const TensorList& w_hh, const TensorList& w_hr,
                              const Tensor& h0, const OptionalTensor& offsets, const OptionalTensor& norms) {
  Shape shape{};
  shape.cell = checked_enum("cell", cell, CellKind::kGru);
  if (x.dim() < 2) fail("x has shape ", list_text(x.sizes()), ", expected [*rows, input_size]");
  check_dim("h0", h0, 3, "[directions, batch, state_size]");
  shape.scalar = scalar_kind("x", x);
  shape.rows = 1;
  for (const int64_t size : row_sizes_of(x)) shape.rows *= size;
  shape.directions = h0.size(0);
  if (shape.directions < 1 || shape.directions > 2)
    fail("h0 has shape ", list_text(h0.sizes()), ", expected 1 or 2 directions");
  if (w_hh.empty()) fail("w_hh has 0 tensors, expected ", shape.directions);
  check_dim("w_hh[0]", w_hh[0], 2, "[gates * hidden_size, state_size]");
  shape.hidden_size = w_hh[0].size(0) / num_gates(shape.cell);
  if (shape.hidden_size < 1 || w_hh[0].size(0) % num_gates(shape.cell))
    fail("w_hh[0] has shape ", list_text(w_hh[0].sizes()), ", expected ", num_gates(shape.cell), " * hidden_size rows");
  read_batch(shape, "x", w_hr, h0, offsets, norms);
  return shape;
}

template <void (*run)(const cpu::LayerForwardParams&)>
void layer_forward(int64_t cell, int64_t dropout_site, const Tensor& x, const TensorList& w_ih, const TensorList& w_hh,
                   const TensorList& b_ih, const TensorList& b_hh, const TensorList& w_hr, const Tensor& h0,
                   const OptionalTensor& c0, const OptionalTensor& mask, const OptionalTensor& lengths,
                   const OptionalTensor& offsets, const Tensor& y, const Tensor& h_n, const OptionalTensor& c_n,
                   bool save, const OptionalTensor& gates, const OptionalTensor& cells, const OptionalTensor& n_h,
                   const OptionalTensor& hidden) {
  const Shape shape = read_layer_shape(cell, x, w_hh, w_hr, h0, offsets, /*norms=*/std::nullopt);
  const int64_t D = shape.directions, H = shape.hidden_size, I = x.size(x.dim() - 1), width = num_gates(shape.cell) * H;
  const Sizes rows = row_sizes_of(x);
  const Arguments arguments("x", x);
  const ScalarType scalar = arguments.scalar();
  cpu::LayerForwardParams params{read_forward(arguments, shape, rows, dropout_site, w_hh, w_hr, h0, c0, mask, lengths,
                                              offsets, y, h_n, c_n, save, cells, n_h, hidden)};
  params.input_size = I;
  params.x = arguments.in({"x", x}, scalar, joined({rows, {I}}));
  arguments.in_list("w_ih", w_ih, true, D, {width, I}, params.w_ih);
  arguments.in_list("b_ih", b_ih, !b_ih.empty(), D, {width}, params.b_ih);
  arguments.in_list("b_hh", b_hh, !b_hh.empty(), D, {width}, params.b_hh);
  if (shape.cell == CellKind::kGru) {
    for (size_t d = 0; d < b_hh.size(); ++d)
      params.b_hn[d] = static_cast<const char*>(params.b_hh[d]) + 2 * H * bytes_of(shape.scalar);
  }
  const bool keeps_gates = save && num_gates(shape.cell) > 1;
  params.gates = arguments.out(Argument("gates", gates).exactly_if(keeps_gates, "an LSTM or GRU that saves"), scalar,
                               joined({{D}, rows, {width}}));
  run(params);
}

template <void (*run)(const cpu::LayerBackwardParams&)>
void layer_backward(int64_t cell, int64_t dropout_site, const OptionalTensor& gates, const OptionalTensor& cells,
                    const OptionalTensor& n_h, const OptionalTensor& hidden, const Tensor& y, const Tensor& x,
                    const TensorList& w_ih, const TensorList& w_hh, const TensorList& w_hr, const Tensor& h0,
                    const OptionalTensor& c0, const OptionalTensor& mask, const OptionalTensor& lengths,
                    const OptionalTensor& offsets, const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
                    const OptionalTensor& grad_c_n, int64_t clip_mode, double clip_threshold,
                    const OptionalTensor& grad_scale, const OptionalTensor& norms, const OptionalTensor& clipped,
                    const OptionalTensor& grad_x, const Tensor& grad_h0, const OptionalTensor& grad_c0,
                    const TensorList& grad_w_ih, const TensorList& grad_w_hh, const TensorList& grad_b_ih,
                    const TensorList& grad_b_hh, const TensorList& grad_w_hr, const OptionalTensor& squares) {
  const Shape shape = read_layer_shape(cell, x, w_hh, w_hr, h0, offsets, norms);
  const int64_t D = shape.directions, H = shape.hidden_size, P = shape.state_size;
  const int64_t I = x.size(x.dim() - 1);
  const Sizes rows = row_sizes_of(x);
  const int64_t width = num_gates(shape.cell) * H;
  const bool projects = shape.cell == CellKind::kLstm && !w_hr.empty();
  const Arguments arguments("x", x);
  const ScalarType scalar = arguments.scalar(), acc = arguments.acc();
  cpu::LayerBackwardParams params{read_backward(arguments, shape, rows, dropout_site, gates, cells, n_h, y, w_hh, w_hr,
                                                h0, c0, mask, lengths, offsets, grad_y, grad_h_n, grad_c_n, clip_mode,
                                                clip_threshold, grad_scale, norms, clipped, grad_h0, grad_c0)};
  params.input_size = I;
  params.x = arguments.in({"x", x}, scalar, joined({rows, {I}}));
  arguments.in_list("w_ih", w_ih, true, D, {width, I}, params.w_ih);
  params.hidden = arguments.in(Argument("hidden", hidden).exactly_if(projects, "an LSTM with w_hr"), scalar,
                               joined({{D}, rows, {H}}));
  params.grad_x = arguments.out({"grad_x", grad_x}, scalar, joined({rows, {I}}));
  arguments.out_list("grad_w_ih", grad_w_ih, D, scalar, {width, I}, params.grad_w_ih);
  arguments.out_list("grad_w_hh", grad_w_hh, D, scalar, {width, P}, params.grad_w_hh);
  arguments.out_list("grad_b_ih", grad_b_ih, D, acc, {width}, params.grad_b_ih);
  arguments.out_list("grad_b_hh", grad_b_hh, D, acc, {width}, params.grad_b_hh);
  if (!projects && !grad_w_hr.empty()) fail("grad_w_hr is given, but it goes with an LSTM with w_hr alone");
  arguments.out_list("grad_w_hr", grad_w_hr, D, scalar, {P, H}, params.grad_w_hr);
  if (squares) {
    check_dim("squares", *squares, 2, "[directions, weights]");
    params.weights = squares->size(1);
    if (params.weights < 2 + projects)
      fail("squares has shape ", list_text(squares->sizes()), ", expected at least ", 2 + projects, " weights");
    params.squares = static_cast<double*>(arguments.out({"squares", squares}, ScalarType::Double, {D, params.weights}));
  }
  run(params);
}

}  // namespace fastrnn::ops
