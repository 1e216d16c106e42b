// The operators on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <new>

#include "../cpu/engine.h"
#include "../cpu/norms.h"
#include "../cpu/pages.h"
#include "cpu.h"
#include "dropout.h"
#include "layer.h"
#include "norms.h"
#include "tensors.h"

namespace fastrnn::ops {
namespace {

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void prepare_outputs(const ForwardParams& params) {
  const Shape& s = params.shape;
  const int64_t acc_bytes = s.scalar == ScalarKind::kDouble ? 8 : 4;
  cpu::prefer_huge_pages(params.y, s.rows * s.directions * s.state_size * bytes_of(s.scalar));
  cpu::prefer_huge_pages(params.cells, s.rows * s.directions * s.hidden_size * acc_bytes);
}

// recurrence_forward and recurrence_backward, as on a GPU. fastrnn's modules run whole layers here.
void forward(const ForwardParams& params, const Call& call) {
  refuse_plan(call, "CPU");
  if (params.shape.is_stack()) fail("chunk is ", params.shape.chunk, ", but the CPU backend runs one layer at a time");
  prepare_outputs(params);
  cpu::recurrence_forward(params, num_threads());
}

void backward(const BackwardParams& params, const Call& call) {
  refuse_plan(call, "CPU");
  const Shape& s = params.shape;
  if (s.is_stack()) fail("chunk is ", s.chunk, ", but the CPU backend runs one layer at a time");
  cpu::prefer_huge_pages(params.grad_gates,
                         s.directions * s.rows * num_gates(s.cell) * s.hidden_size * bytes_of(s.scalar));
  cpu::recurrence_backward(params, num_threads());
}

std::string cpu_isa() { return cpu::isa(); }

void norm(const NormParams& params, int32_t) { cpu::sum_of_squares(params, num_threads()); }

void clip_to(const ClipParams& params, int32_t) { cpu::clip(params, num_threads()); }

}  // namespace

void run_layer(const cpu::LayerForwardParams& params) {
  const Shape& s = params.shape;
  prepare_outputs(params);
  cpu::prefer_huge_pages(params.gates, s.rows * s.directions * num_gates(s.cell) * s.hidden_size * bytes_of(s.scalar));
  cpu::layer_forward(params, num_threads());
}

void run_layer_backward(const cpu::LayerBackwardParams& params) {
  const Shape& s = params.shape;
  const int64_t gate_bytes = s.directions * s.rows * num_gates(s.cell) * s.hidden_size * bytes_of(s.scalar);
  cpu::prefer_huge_pages(params.grad_x, s.rows * params.input_size * bytes_of(s.scalar));
  for (int64_t d = 0; d < s.directions; ++d) {
    const int64_t bytes = num_gates(s.cell) * s.hidden_size * bytes_of(s.scalar);
    cpu::prefer_huge_pages(params.grad_w_ih[d], params.input_size * bytes);
    cpu::prefer_huge_pages(params.grad_w_hh[d], s.state_size * bytes);
  }
  try {
    cpu::layer_backward(params, num_threads());
  } catch (const std::bad_alloc&) {
    fail("out of memory in backward: the gradients of the gates take ", gate_bytes, " bytes");
  }
}

void draw_dropout(const cpu::DropoutParams& params) { cpu::draw_dropout(params, num_threads()); }

}  // namespace fastrnn::ops

namespace ops = fastrnn::ops;

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&ops::Operator<&ops::recurrence_forward<ops::forward>>::call));
  m.impl("recurrence_backward", TORCH_BOX(&ops::Operator<&ops::recurrence_backward<ops::backward>>::call));
  m.impl("layer_forward", TORCH_BOX(&ops::Operator<&ops::layer_forward<ops::run_layer>>::call));
  m.impl("layer_backward", TORCH_BOX(&ops::Operator<&ops::layer_backward<ops::run_layer_backward>>::call));
  m.impl("sum_of_squares", TORCH_BOX(&ops::Operator<&ops::sum_of_squares<ops::norm>>::call));
  m.impl("clip_", TORCH_BOX(&ops::Operator<&ops::clip<ops::clip_to>>::call));
  m.impl("dropout_factors_", TORCH_BOX(&ops::Operator<&ops::dropout_factors<ops::draw_dropout>>::call));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&ops::cpu_isa)); }
