// From an operator's arguments to its parameter struct (params.h). Every backend registers these operators with a function
// of its own that runs the filled struct, so that the schema's order of arguments and the checks are written once.
#pragma once

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"

namespace fastrnn::ops {

// What a backend is told beside the parameters.
struct Call {
  int32_t device_index;
  const std::string& plan;  // the plan asked for by name; empty: the backend chooses
  void* workspace;          // scratch for the kernels of a GPU, may be nullptr
  int64_t workspace_bytes;
};

inline void refuse_plan(const Call& call, const char* backend) {
  if (!call.plan.empty())
    fail("plan is \"", call.plan, "\", but the ", backend, " backend has no plans to choose from");
}

template <typename Enum>
Enum checked_enum(const char* name, int64_t value, Enum last) {
  if (value < 0 || value > static_cast<int64_t>(last))
    fail(name, " is ", value, ", expected 0 to ", static_cast<int64_t>(last));
  return static_cast<Enum>(value);
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim, const char* sizes) {
  if (tensor.dim() != dim) fail(name, " has shape ", list_text(tensor.sizes()), ", expected ", sizes);
}

// What h0 and the rows tell; the rest of the shape is there. `name` is the tensor that has them. `norms` knows the number of steps
// where an empty batch hides it.
inline void read_batch(Shape& shape, const char* name, const TensorList& w_hr, const Tensor& h0,
                       const OptionalTensor& offsets, const OptionalTensor& norms) {
  check_dim("h0", h0, 3, "[directions, batch, state_size]");
  shape.batch = h0.size(1);
  shape.state_size = h0.size(2);
  const bool projects = shape.cell == CellKind::kLstm && !w_hr.empty();
  if (shape.state_size < 1 || (shape.state_size != shape.hidden_size && !projects))
    fail("h0 has shape ", list_text(h0.sizes()), ", expected the hidden size ", shape.hidden_size, " at the end");
  if (offsets) {
    check_dim("offsets", *offsets, 1, "[steps]");
    shape.steps = offsets->size(0);
    return;
  }
  if (shape.batch > 0) {
    shape.steps = shape.rows / shape.batch;
  } else if (norms && norms->dim() == 3) {
    shape.steps = norms->size(1);
  }
  if (shape.rows != shape.steps * shape.batch)
    fail(name, " has ", shape.rows, " rows, expected a multiple of the batch size ", shape.batch);
}

inline Shape read_shape(int64_t cell, const char* name, const Tensor& gates, const TensorList& w_hr, const Tensor& h0,
                        const OptionalTensor& offsets, const OptionalTensor& norms) {
  Shape shape{};
  shape.cell = checked_enum("cell", cell, CellKind::kGru);
  check_dim(name, gates, 3, "[directions, rows, gates * hidden_size]");
  shape.scalar = scalar_kind(name, gates);
  shape.directions = gates.size(0);
  shape.rows = gates.size(1);
  shape.hidden_size = gates.size(2) / num_gates(shape.cell);
  if (shape.hidden_size < 1 || gates.size(2) % num_gates(shape.cell))
    fail(name, " has shape ", list_text(gates.sizes()), ", expected ", num_gates(shape.cell),
         " * hidden_size at the end");
  read_batch(shape, name, w_hr, h0, offsets, norms);
  return shape;
}

// Of a stack; 0, 0 for a layer. After the shape.
inline void read_stage(Shape& shape, const char* name, const Tensor& gates, int64_t chunk, int64_t stage,
                       bool is_ragged, bool projects) {
  shape.chunk = chunk;
  shape.stage = stage;
  if (shape.directions < 1 || shape.directions > (chunk == 0 ? 2 : kMaxDirections))
    fail(name, " has shape ", list_text(gates.sizes()), ", expected 1 ",
         chunk == 0 ? std::string("or 2 directions") : "to " + std::to_string(kMaxDirections) + " layers");
  if (chunk < 0 || chunk > INT32_MAX || stage < 0 || stage >= shape.stages())
    fail("stage is ", stage, " of chunk ", chunk, ", expected a stage from 0 to ", shape.stages() - 1);
  if (chunk > 0 && (is_ragged || projects)) fail("a stack of layers takes neither lengths, offsets nor w_hr");
}

// Values can be read without a copy and a wait on the CPU alone; kernels of other devices clamp lengths to [0, steps].
inline void check_length_values(const int64_t* lengths, const Shape& shape) {
  for (int64_t b = 0; b < shape.batch; ++b)
    if (lengths[b] < 0 || lengths[b] > shape.steps)
      fail("lengths[", b, "] is ", lengths[b], " but the sequence has ", shape.steps, " steps");
}

// Step t has the rows from offsets[t] to offsets[t + 1]: they have to lie inside the tensors, never grow in number, and be as
// many as there are sequences longer than t.
inline void check_packed_values(const int64_t* offsets, const int64_t* lengths, const Shape& shape) {
  for (int64_t b = 1; lengths && b < shape.batch; ++b)
    if (lengths[b] > lengths[b - 1])
      fail("lengths[", b, "] is ", lengths[b], " after ", lengths[b - 1],
           ", expected falling lengths in a packed batch");
  if (shape.steps > 0 && offsets[0] != 0) fail("offsets[0] is ", offsets[0], ", expected 0");
  if (shape.steps == 0 && shape.rows != 0) fail("there are ", shape.rows, " rows, but offsets has no steps");
  int64_t running = shape.batch;
  for (int64_t t = 0; t < shape.steps; ++t) {
    const int64_t end = t + 1 < shape.steps ? offsets[t + 1] : shape.rows;
    while (lengths && running > 0 && lengths[running - 1] <= t) --running;
    // Written without a difference that could overflow.
    const bool fits = offsets[t] <= end && end <= shape.rows && end - offsets[t] <= running;
    if (!fits || (lengths && end - offsets[t] != running))
      fail("offsets gives step ", t, " the rows from ", offsets[t], " to ", end, " of ", shape.rows, ", expected ",
           lengths ? "" : "at most ", running, " rows");
    running = end - offsets[t];
  }
}

// Addresses of lengths and offsets.
inline std::pair<const int64_t*, const int64_t*> read_ragged(const Arguments& arguments, const OptionalTensor& lengths,
                                                             const OptionalTensor& offsets, const Shape& shape) {
  const auto read = [&](const char* name, const OptionalTensor& tensor, int64_t size) {
    return static_cast<const int64_t*>(arguments.in({name, tensor}, ScalarType::Long, {size}));
  };
  const int64_t* lengths_data = read("lengths", lengths, shape.batch);
  const int64_t* offsets_data = read("offsets", offsets, shape.steps);
  if (lengths && lengths->is_cpu()) check_length_values(lengths_data, shape);
  if (offsets && offsets->is_cpu()) check_packed_values(offsets_data, lengths_data, shape);
  return {lengths_data, offsets_data};
}

inline const void* read_mask(const Arguments& arguments, const OptionalTensor& mask, DropoutSite site,
                             const Shape& shape) {
  const bool on_state = site == DropoutSite::kState;
  if (mask && !on_state && num_gates(shape.cell) == 1)
    fail("dropout_site is candidate, but an RNN has no candidate apart from its state");
  return arguments.in({"mask", mask}, arguments.acc(),
                      {shape.directions, shape.batch, on_state ? shape.state_size : shape.hidden_size});
}

inline Call read_call(const Arguments& arguments, const OptionalTensor& workspace, const Tensor& beside,
                      const std::string& plan) {
  Call call{beside.device_index(), plan, nullptr, 0};
  if (!workspace) return call;
  check_dim("workspace", *workspace, 1, "[bytes]");
  call.workspace_bytes = workspace->size(0);
  call.workspace = arguments.out({"workspace", workspace}, ScalarType::Byte, {call.workspace_bytes});
  return call;
}

// All but gates and b_hn. `row_sizes`: the dimensions of the rows, one or more.
inline ForwardParams read_forward(const Arguments& arguments, const Shape& shape, const Sizes& row_sizes,
                                  int64_t dropout_site, const TensorList& w_hh, const TensorList& w_hr,
                                  const Tensor& h0, const OptionalTensor& c0, const OptionalTensor& mask,
                                  const OptionalTensor& lengths, const OptionalTensor& offsets, const Tensor& y,
                                  const Tensor& h_n, const OptionalTensor& c_n, bool save, const OptionalTensor& cells,
                                  const OptionalTensor& n_h, const OptionalTensor& hidden) {
  const auto [steps, batch, rows, H, P, D, kind, storage, chunk, stage] = shape;
  const int64_t G = num_gates(kind);
  const bool lstm = kind == CellKind::kLstm, gru = kind == CellKind::kGru, projects = lstm && !w_hr.empty();
  const ScalarType scalar = arguments.scalar(), acc = arguments.acc();
  ForwardParams params{};
  params.shape = shape;
  params.dropout_site = checked_enum("dropout_site", dropout_site, DropoutSite::kCandidate);
  arguments.in_list("w_hh", w_hh, true, D, {G * H, P}, params.w_hh);
  arguments.in_list("w_hr", w_hr, projects, D, {P, H}, params.w_hr);
  params.h0 = arguments.in({"h0", h0}, scalar, {D, batch, P});
  params.c0 = arguments.in(Argument("c0", c0).exactly_if(lstm, "an LSTM"), scalar, {D, batch, H});
  params.mask = read_mask(arguments, mask, params.dropout_site, shape);
  std::tie(params.lengths, params.offsets) = read_ragged(arguments, lengths, offsets, shape);
  params.y = arguments.out({"y", y}, scalar, joined({row_sizes, {D * P}}));
  params.h_n = arguments.out({"h_n", h_n}, scalar, {D, batch, P});
  params.c_n = arguments.out(Argument("c_n", c_n).exactly_if(lstm, "an LSTM"), scalar, {D, batch, H});
  params.save = save;
  params.cells = arguments.out(Argument("cells", cells).exactly_if(save && lstm, "an LSTM that saves"), acc,
                               joined({{D}, row_sizes, {H}}));
  params.n_h = arguments.out(Argument("n_h", n_h).exactly_if(save && gru, "a GRU that saves"), scalar,
                             joined({{D}, row_sizes, {H}}));
  params.hidden = arguments.out(Argument("hidden", hidden).exactly_if(save && projects, "an LSTM with w_hr that saves"),
                                scalar, joined({{D}, row_sizes, {H}}));
  return params;
}

template <void (*run)(const ForwardParams&, const Call&)>
void recurrence_forward(int64_t cell, int64_t dropout_site, const Tensor& gates, const TensorList& w_hh,
                        const TensorList& b_hn, const TensorList& w_hr, const Tensor& h0, const OptionalTensor& c0,
                        const OptionalTensor& mask, const OptionalTensor& lengths, const OptionalTensor& offsets,
                        const Tensor& y, const Tensor& h_n, const OptionalTensor& c_n, bool save,
                        const OptionalTensor& cells, const OptionalTensor& n_h, const OptionalTensor& hidden,
                        const OptionalTensor& workspace, const std::string& plan, int64_t chunk, int64_t stage) {
  Shape shape = read_shape(cell, "gates", gates, w_hr, h0, offsets, /*norms=*/std::nullopt);
  read_stage(shape, "gates", gates, chunk, stage, lengths || offsets, !w_hr.empty());
  const Arguments arguments("gates", gates);
  ForwardParams params = read_forward(arguments, shape, {shape.rows}, dropout_site, w_hh, w_hr, h0, c0, mask, lengths,
                                      offsets, y, h_n, c_n, save, cells, n_h, hidden);
  const int64_t D = shape.directions, H = shape.hidden_size;
  params.gates = arguments.out({"gates", gates}, arguments.scalar(), {D, shape.rows, num_gates(shape.cell) * H});
  arguments.in_list("b_hn", b_hn, shape.cell == CellKind::kGru && !b_hn.empty(), D, {H}, params.b_hn);
  run(params, read_call(arguments, workspace, gates, plan));
}

// What backward reads, and the states' gradients. `row_sizes` as read_forward's.
inline BackwardParams read_backward(const Arguments& arguments, const Shape& shape, const Sizes& row_sizes,
                                    int64_t dropout_site, const OptionalTensor& gates, const OptionalTensor& cells,
                                    const OptionalTensor& n_h, const Tensor& y, const TensorList& w_hh,
                                    const TensorList& w_hr, const Tensor& h0, const OptionalTensor& c0,
                                    const OptionalTensor& mask, const OptionalTensor& lengths,
                                    const OptionalTensor& offsets, const OptionalTensor& grad_y,
                                    const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n, int64_t clip_mode,
                                    double clip_threshold, const OptionalTensor& grad_scale,
                                    const OptionalTensor& norms, const OptionalTensor& clipped, const Tensor& grad_h0,
                                    const OptionalTensor& grad_c0) {
  const auto [steps, batch, rows, H, P, D, kind, storage, chunk, stage] = shape;
  const int64_t G = num_gates(kind);
  const bool lstm = kind == CellKind::kLstm, gru = kind == CellKind::kGru, projects = lstm && !w_hr.empty();
  const ScalarType scalar = arguments.scalar(), acc = arguments.acc();
  BackwardParams params{};
  params.shape = shape;
  params.dropout_site = checked_enum("dropout_site", dropout_site, DropoutSite::kCandidate);
  params.gates = arguments.in(Argument("gates", gates).exactly_if(lstm || gru, "an LSTM or GRU"), scalar,
                              joined({{D}, row_sizes, {G * H}}));
  params.cells = arguments.in(Argument("cells", cells).exactly_if(lstm, "an LSTM"), acc, joined({{D}, row_sizes, {H}}));
  params.n_h = arguments.in(Argument("n_h", n_h).exactly_if(gru, "a GRU"), scalar, joined({{D}, row_sizes, {H}}));
  params.y = arguments.in({"y", y}, scalar, joined({row_sizes, {D * P}}));
  arguments.in_list("w_hh", w_hh, true, D, {G * H, P}, params.w_hh);
  arguments.in_list("w_hr", w_hr, projects, D, {P, H}, params.w_hr);
  params.h0 = arguments.in({"h0", h0}, scalar, {D, batch, P});
  params.c0 = arguments.in(Argument("c0", c0).exactly_if(lstm, "an LSTM"), scalar, {D, batch, H});
  params.mask = read_mask(arguments, mask, params.dropout_site, shape);
  std::tie(params.lengths, params.offsets) = read_ragged(arguments, lengths, offsets, shape);
  params.grad_y = shape.is_stack() ? arguments.in({"grad_y", grad_y}, scalar, joined({{D}, row_sizes, {P}}))
                                   : arguments.in({"grad_y", grad_y}, scalar, joined({row_sizes, {D * P}}));
  params.grad_h_n = arguments.in({"grad_h_n", grad_h_n}, scalar, {D, batch, P});
  if (!lstm) Argument("grad_c_n", grad_c_n).exactly_if(false, "an LSTM");
  params.grad_c_n = arguments.in({"grad_c_n", grad_c_n}, scalar, {D, batch, H});
  params.clip_mode = checked_enum("clip_mode", clip_mode, ClipMode::kValue);
  params.clip_threshold = clip_threshold;
  if (params.clip_mode != ClipMode::kNone && !(clip_threshold > 0))
    fail("clip_threshold is ", clip_threshold, ", expected a positive number");
  const bool wraps_scale = grad_scale && grad_scale->dim() == 1;
  params.grad_scale =
      static_cast<const float*>(wraps_scale ? arguments.in({"grad_scale", grad_scale}, ScalarType::Float, {1})
                                            : arguments.in({"grad_scale", grad_scale}, ScalarType::Float, {}));
  params.norms = arguments.out({"norms", norms}, acc, {D, steps, batch});
  params.clipped = static_cast<bool*>(arguments.out({"clipped", clipped}, ScalarType::Bool, {D, steps, batch}));
  params.grad_h0 = arguments.out({"grad_h0", grad_h0}, scalar, {D, batch, P});
  params.grad_c0 = arguments.out(Argument("grad_c0", grad_c0).exactly_if(lstm, "an LSTM"), scalar, {D, batch, H});
  return params;
}

template <void (*run)(const BackwardParams&, const Call&)>
void recurrence_backward(int64_t cell, int64_t dropout_site, const OptionalTensor& gates, const OptionalTensor& cells,
                         const OptionalTensor& n_h, const Tensor& y, const TensorList& w_hh, const TensorList& w_hr,
                         const Tensor& h0, const OptionalTensor& c0, const OptionalTensor& mask,
                         const OptionalTensor& lengths, const OptionalTensor& offsets, const OptionalTensor& grad_y,
                         const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n, int64_t clip_mode,
                         double clip_threshold, const OptionalTensor& grad_scale, const OptionalTensor& norms,
                         const OptionalTensor& clipped, const Tensor& grad_gates, const OptionalTensor& grad_n_h,
                         const OptionalTensor& grad_h, const Tensor& grad_h0, const OptionalTensor& grad_c0,
                         const OptionalTensor& grad_bias, const OptionalTensor& h_prev, const OptionalTensor& workspace,
                         const std::string& plan, int64_t chunk, int64_t stage) {
  Shape shape = read_shape(cell, "grad_gates", grad_gates, w_hr, h0, offsets, norms);
  read_stage(shape, "grad_gates", grad_gates, chunk, stage, lengths || offsets, !w_hr.empty());
  const Arguments arguments("grad_gates", grad_gates);
  BackwardParams params = read_backward(arguments, shape, {shape.rows}, dropout_site, gates, cells, n_h, y, w_hh, w_hr,
                                        h0, c0, mask, lengths, offsets, grad_y, grad_h_n, grad_c_n, clip_mode,
                                        clip_threshold, grad_scale, norms, clipped, grad_h0, grad_c0);
  const auto [steps, batch, rows, H, P, D, kind, storage, chunk_, stage_] = shape;
  const ScalarType scalar = arguments.scalar();
  const bool gru = kind == CellKind::kGru, projects = kind == CellKind::kLstm && !w_hr.empty();
  const int64_t G = num_gates(kind);
  params.grad_gates = arguments.out({"grad_gates", grad_gates}, scalar, {D, rows, G * H});
  params.grad_n_h = arguments.out(Argument("grad_n_h", grad_n_h).exactly_if(gru, "a GRU"), scalar, {D, rows, H});
  params.grad_h =
      arguments.out(Argument("grad_h", grad_h).exactly_if(projects, "an LSTM with w_hr"), scalar, {D, rows, P});
  params.grad_bias = arguments.out({"grad_bias", grad_bias}, arguments.acc(), {D, (gru ? G + 1 : G) * H});
  params.h_prev = arguments.out({"h_prev", h_prev}, scalar, {D, rows, P});
  run(params, read_call(arguments, workspace, grad_gates, plan));
}

}  // namespace fastrnn::ops
