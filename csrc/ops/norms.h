// The operators of gradient clipping, over lists of tensors: any dense layout, any mix of dtypes.
#pragma once

#include "../norms.h"
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

inline std::vector<Span> spans_of(const Arguments& arguments, const TensorList& tensors) {
  std::vector<Span> spans;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    const std::string name = "tensors[" + std::to_string(i) + ']';
    const ScalarKind scalar = scalar_kind(name.c_str(), tensor);
    arguments.check_device({name, tensor});
    if (tensor.numel() == 0) continue;
    if (!is_dense(tensor)) fail(name, " has gaps or overlaps in memory, expected a dense tensor");
    spans.push_back({tensor.mutable_data_ptr(), tensor.numel(), scalar});
  }
  return spans;
}

inline void check_one(const char* name, const Tensor& tensor) {
  if (tensor.numel() != 1) fail(name, " has shape ", list_text(tensor.sizes()), ", expected one element");
}

template <void (*run)(const NormParams&, int32_t device_index)>
void sum_of_squares(const TensorList& tensors, const TensorList& known, const Tensor& partial, const Tensor& out,
                    bool root) {
  const Arguments arguments("out", out);
  NormParams params{};
  params.spans = spans_of(arguments, tensors);
  for (size_t i = 0; i < known.size(); ++i)
    params.known.push_back(static_cast<const double*>(
        arguments.in({"known[" + std::to_string(i) + ']', known[i]}, ScalarType::Double, {1})));
  int64_t num_blocks = static_cast<int64_t>(known.size());
  for (const Span& span : params.spans) num_blocks += num_norm_blocks(span.size);
  params.partial = static_cast<double*>(arguments.out({"partial", partial}, ScalarType::Double, {num_blocks}));
  params.out_scalar = scalar_kind("out", out);
  check_one("out", out);
  params.out = out.mutable_data_ptr();
  params.root = root;
  run(params, out.device_index());
}

template <void (*run)(const ClipParams&, int32_t device_index)>
void clip(const TensorList& tensors, const Tensor& norm, double max_norm) {
  const Arguments arguments("norm", norm);
  ClipParams params{};
  params.spans = spans_of(arguments, tensors);
  params.norm_scalar = scalar_kind("norm", norm);
  check_one("norm", norm);
  params.norm = norm.const_data_ptr();
  params.max_norm = max_norm;
  if (!params.spans.empty()) run(params, norm.device_index());
}

}  // namespace fastrnn::ops
