// A matrix product of any storage type, by its definition.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <functional>

#include "../../csrc/cuda/recurrence.h"

namespace fastrnn::emulator {

template <typename Scalar, typename Acc>
void multiply(const cuda::Product& p) {
  const auto* a = static_cast<const Scalar*>(p.a);
  const auto* b = static_cast<const Scalar*>(p.b);
  auto* out = static_cast<Acc*>(p.out);
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < p.n; ++j) {
      Acc sum = 0;
      for (int64_t k = 0; k < p.k; ++k)
        sum += static_cast<Acc>(a[i * p.k + k]) * static_cast<Acc>(b[p.transposes_b ? j * p.k + k : k * p.n + j]);
      out[i * p.n + j] = sum;
    }
}

inline std::function<void()> plain_product(const cuda::Product& product) {
  switch (product.scalar) {
    case ScalarKind::kDouble: return [product] { multiply<double, double>(product); };
    case ScalarKind::kHalf: return [product] { multiply<__half, float>(product); };
    case ScalarKind::kBfloat16: return [product] { multiply<__nv_bfloat16, float>(product); };
    default: return [product] { multiply<float, float>(product); };
  }
}

}  // namespace fastrnn::emulator
