// The operators of gradient clipping, over lists of tensors: any dense layout, any mix of dtypes.
#pragma once

#include "../cpu/norms.h"
#include "checks.h"

namespace fastrnn::ops {

// Whether the elements fill one stretch of memory, in whatever order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) != 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline std::vector<cpu::Span> spans_of(const std::vector<Tensor>& tensors) {
  std::vector<cpu::Span> spans;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    if (tensor.numel() == 0) continue;
    const std::string name = "tensors[" + std::to_string(i) + ']';
    if (!is_dense(tensor)) fail(name, " has gaps or overlaps in memory, expected a dense tensor");
    spans.push_back({tensor.mutable_data_ptr(), tensor.numel(), scalar_kind(name.c_str(), tensor)});
  }
  return spans;
}

}  // namespace fastrnn::ops
