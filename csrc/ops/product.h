// A matrix product of torch's, on raw memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <functional>

#include "../cuda/recurrence.h"

namespace fastrnn::ops {

using torch::headeronly::ScalarType;

inline ScalarType dtype_of(ScalarKind scalar) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
  return kTypes[static_cast<int>(scalar)];
}

// Computes product.out at each call, on the stream that is current then.
inline std::function<void()> torch_product(const cuda::Product& product, torch::stable::Device device) {
  using torch::stable::Tensor;
  const ScalarType scalar = dtype_of(product.scalar);
  const ScalarType acc = scalar == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto matrix = [&](const void* data, ScalarType dtype, int64_t rows, int64_t columns, bool transposed) {
    const int64_t sizes[] = {rows, columns};
    const int64_t strides[] = {transposed ? 1 : columns, transposed ? rows : 1};
    return torch::stable::from_blob(const_cast<void*>(data), {sizes, 2}, {strides, 2}, device, dtype);
  };
  return [a = matrix(product.a, scalar, product.m, product.k, false),
          b = matrix(product.b, scalar, product.k, product.n, product.transposes_b),
          out = matrix(product.out, acc, product.m, product.n, false), scalar, acc] {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    if (scalar == acc) {
      std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
      STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
      to<Tensor>(stack[0]);  // takes the reference that came back
    } else {                 // sums of 16-bit numbers, kept in float32
      std::array<StableIValue, 4> stack{from(a), from(b), from(acc), from(out)};
      STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
      to<Tensor>(stack[0]);
    }
  };
}

}  // namespace fastrnn::ops
