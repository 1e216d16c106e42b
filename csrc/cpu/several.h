// Vectors of several samples as one accumulator of cells.h. A cell is a long chain of operations that wait for each other, and too
// many instructions for a processor to reach far into the next cell. Side by side, one sample's chain runs in the other's gaps.
#pragma once

#include "simd_math.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename V, int kCount>
struct Several {
  V each[kCount];

  Several() = default;
  FASTRNN_INLINE Several(typename V::Element scalar) {
#pragma GCC unroll 4
    for (int n = 0; n < kCount; ++n) each[n] = V(scalar);
  }

  // function(what is one sample's) for each.
  template <typename Function, typename... Operands>
  FASTRNN_INLINE static Several of_each(Function function, const Operands&... operands) {
    Several result;
#pragma GCC unroll 4
    for (int n = 0; n < kCount; ++n) result.each[n] = function(operands.each[n]...);
    return result;
  }

  FASTRNN_INLINE friend Several operator+(const Several& a, const Several& b) {
    return of_each([](V x, V y) __attribute__((always_inline)) { return x + y; }, a, b);
  }
  FASTRNN_INLINE friend Several operator-(const Several& a, const Several& b) {
    return of_each([](V x, V y) __attribute__((always_inline)) { return x - y; }, a, b);
  }
  FASTRNN_INLINE friend Several operator*(const Several& a, const Several& b) {
    return of_each([](V x, V y) __attribute__((always_inline)) { return x * y; }, a, b);
  }
  FASTRNN_INLINE friend Several sigmoid(const Several& x) {
    return of_each([](V v) __attribute__((always_inline)) { return FASTRNN_ISA::sigmoid(v); }, x);
  }
  FASTRNN_INLINE friend Several tanh(const Several& x) {
    return of_each([](V v) __attribute__((always_inline)) { return FASTRNN_ISA::tanh(v); }, x);
  }
  FASTRNN_INLINE friend Several relu(const Several& x) {
    return of_each([](V v) __attribute__((always_inline)) { return FASTRNN_ISA::relu(v); }, x);
  }
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
