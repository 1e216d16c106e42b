// The kernels of gradient clipping against sums in double.
#pragma once

#include <cmath>
#include <cstdio>
#include <vector>

#include "../../csrc/cuda/norms.h"
#include "array.h"
#include "device.h"

namespace fastrnn::emulator {

#if defined(EMULATOR_TSAN)
constexpr int kTensors = 20;  // ThreadSanitizer knows 8,000 threads
#else
constexpr int kTensors = 140;  // more than a launch carries
#endif

// The norm of tensors of every type, one element off the alignment of a pack and larger than a block; then they are clipped.
inline bool norms_are_right() {
  reset_device();
  std::vector<Array> tensors;
  std::vector<Span> spans;
  double expected = 0;
  tensors.reserve(kTensors);
  for (int i = 0; i < kTensors; ++i) {
    const auto kind = static_cast<ScalarKind>(i % 4);
    Vector values(i == 5 ? kNormBlock + 77 : 2 + i % 23);
    for (size_t j = 0; j < values.size(); ++j) values[j] = static_cast<double>(j % 5) - 1.5;
    const Array& tensor = tensors.emplace_back(kind, values);
    const bool is_off = i % 3 == 0;
    spans.push_back({tensor.at(is_off), static_cast<int64_t>(values.size()) - is_off, kind});
    for (size_t j = is_off; j < values.size(); ++j) expected += values[j] * values[j];
  }
  const double known = 17;
  int64_t num_partial = 1;
  for (const Span& span : spans) num_partial += num_norm_blocks(span.size);
  Vector partial(num_partial);
  bool right = true;
  for (const ScalarKind kind : {ScalarKind::kFloat, ScalarKind::kDouble, ScalarKind::kHalf, ScalarKind::kBfloat16}) {
    const Array out(kind, 1);
    cuda::sum_of_squares({spans, {&known}, partial.data(), out.data(), kind, /*root=*/true}, nullptr);
    const double norm = out.values()[0];
    if (std::abs(norm - std::sqrt(expected + known)) <= 0.01 * norm) continue;
    right = false;
    std::printf("the norm is %g, expected %g\n", norm, std::sqrt(expected + known));
  }
  const Array norm(ScalarKind::kDouble, Vector{8});
  for (const double max_norm : {9.0, 2.0}) {  // nothing to do, then a quarter
    const Vector before = tensors[5].values();
    cuda::clip({spans, norm.data(), ScalarKind::kDouble, max_norm}, nullptr);
    const double factor = max_norm > 8 ? 1 : 0.25;
    const Vector after = tensors[5].values();
    for (size_t j = 0; j < before.size(); ++j)
      if (std::abs(after[j] - before[j] * factor) > 1e-5) {
        right = false;
        std::printf("element %zu is clipped from %g to %g\n", j, before[j], after[j]);
        break;
      }
  }
  return right;
}

}  // namespace fastrnn::emulator
