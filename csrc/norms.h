// What the operators of gradient clipping are given, filled by ops/norms.h: a list of tensors, taken together. The CPU and the
// CUDA kernels share it.
#pragma once

#include <cstdint>
#include <vector>

#include "params.h"

namespace fastrnn {

// Tensors are dealt out in blocks of this many elements. Each block has one partial sum, so that a total never depends on which
// thread took which block.
constexpr int64_t kNormBlock = 1 << 14;

constexpr int64_t num_norm_blocks(int64_t size) { return (size + kNormBlock - 1) / kNormBlock; }

// A tensor that fills one stretch of memory.
struct Span {
  void* data;
  int64_t size;  // elements, at least 1
  ScalarKind scalar;
};

// out = the sum of squares over all tensors, plus sums already known; or its root. Squares are summed in double: right where
// float squares would be 0 or inf.
struct NormParams {
  std::vector<Span> spans;
  std::vector<const double*> known;  // each [1]
  double* partial;                   // [blocks of all spans, and one for each sum already known]
  void* out;                         // [1]
  ScalarKind out_scalar;
  bool root;
};

// Every tensor times min(1, max_norm / (norm + 1e-6)), a factor in norm's precision; untouched where it is 1. A NaN stays one.
struct ClipParams {
  std::vector<Span> spans;
  const void* norm;  // [1]
  ScalarKind norm_scalar;
  double max_norm;
};

}  // namespace fastrnn
