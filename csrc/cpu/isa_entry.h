// The engine for one instruction set: picks the instantiation for a storage type and a cell. The one type switch of the engine.
#pragma once

#include "philox.h"
#include "recurrence_backward.h"
#include "recurrence_forward.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <template <typename, typename> class Job, typename Scalar, typename Params>
void run_with_scalar(const Params& params, int num_threads, int64_t l2_bytes) {
  const auto run = [&]<typename Cell>(Cell) {
    Job<Scalar, Cell> job(params, l2_bytes);
    run_team(job, num_threads);
  };
  switch (params.shape.cell) {
    case CellKind::kRnnTanh: return run(RnnTanh{});
    case CellKind::kRnnRelu: return run(RnnRelu{});
    case CellKind::kLstm: return run(Lstm{});
    case CellKind::kGru: return run(Gru{});
  }
}

template <template <typename, typename> class Job, typename Params>
void run(const Params& params, int num_threads, int64_t l2_bytes) {
#if defined(FASTRNN_AVX512_BF16)  // no other type comes here (isa_for)
  run_with_scalar<Job, Bfloat16>(params, num_threads, l2_bytes);
#else
  switch (params.shape.scalar) {
    case ScalarKind::kFloat: return run_with_scalar<Job, float>(params, num_threads, l2_bytes);
    case ScalarKind::kDouble: return run_with_scalar<Job, double>(params, num_threads, l2_bytes);
    case ScalarKind::kHalf: return run_with_scalar<Job, Half>(params, num_threads, l2_bytes);
    case ScalarKind::kBfloat16: return run_with_scalar<Job, Bfloat16>(params, num_threads, l2_bytes);
  }
#endif
}

// Of every type but double; the file of AVX512-BF16 has bfloat16 alone.
#if defined(FASTRNN_AVX512_BF16)
using FactorOfFloats = FactorOf<Bfloat16>::type;
#else
using FactorOfFloats = float;
#endif

template <typename Function>
auto run_with_factor(ScalarKind scalar, Function function) {
  return scalar == ScalarKind::kDouble ? function(double{}) : function(FactorOfFloats{});
}

Split split_of_forward(const Shape& shape, int num_threads, int64_t l2_bytes) {
  return run_with_factor(
      shape.scalar, [&]<typename Factor>(Factor) { return split_of_forward<Factor>(shape, num_threads, l2_bytes); });
}

Split split_of_backward(const Shape& shape, int num_threads, int64_t l2_bytes) {
  return run_with_factor(
      shape.scalar, [&]<typename Factor>(Factor) { return split_of_backward<Factor>(shape, num_threads, l2_bytes); });
}

void forward(const LayerForwardParams& params, int num_threads, int64_t l2_bytes) {
  run<Forward>(params, num_threads, l2_bytes);
}

void backward(const LayerBackwardParams& params, int num_threads, int64_t l2_bytes) {
  run<Backward>(params, num_threads, l2_bytes);
}

#if !defined(FASTRNN_AVX512_BF16)
void draw_factors(const Drawing& drawing, int64_t first, int64_t last) {
  switch (drawing.bytes) {
    case 2: return draw<uint16_t>(drawing, first, last);
    case 4: return draw<uint32_t>(drawing, first, last);
    case 8: return draw<uint64_t>(drawing, first, last);
  }
}
#endif

}  // namespace fastrnn::cpu::FASTRNN_ISA
