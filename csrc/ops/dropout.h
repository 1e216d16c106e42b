// The operator that draws factors of dropout.
#pragma once

#include "../cpu/dropout.h"
#include "checks.h"

namespace fastrnn::ops {

template <void (*run)(const cpu::DropoutParams&)>
void dropout_factors(const Tensor& factors, const Tensor& seed, double p) {
  const Arguments arguments("factors", factors);
  const ScalarKind scalar = scalar_kind("factors", factors);
  void* const data =
      arguments.out({"factors", factors}, factors.scalar_type(), Sizes(factors.sizes().begin(), factors.sizes().end()));
  const auto* const seed_data = static_cast<const int64_t*>(arguments.in({"seed", seed}, ScalarType::Long, {}));
  if (!(p >= 0 && p <= 1)) fail("p is ", p, ", expected a number from 0 to 1");
  run({data, factors.numel(), scalar, p, static_cast<uint64_t>(*seed_data)});
}

}  // namespace fastrnn::ops
