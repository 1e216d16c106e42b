// exp, sigmoid and tanh of vectors, and what else cells.h asks of its accumulator type.
//
// Both functions rest on exp(x) - 1, split as x = n ln2 + r with |r| <= ln2 / 2:
//   exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1),
// exp(r) - 1 being a polynomial. Nothing cancels: sigmoid(x) is e / (1 + e) with e = exp(x), tanh(|x|) is m / (1 + m) with
// m = (exp(2|x|) - 1) / 2. Errors, subnormal results included: at most 2 units in the last place, 2.5 where the target has no FMA
// (tests/cpp/simd_accuracy.cpp).
#pragma once

#include "simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// exp(r) - 1 = r + r^2 p(r).
template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504f;
  // ln2 in two parts; the first has 9 bits, so that its multiples are exact also without FMA.
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
  static constexpr int kFractionBits = 23;
  static constexpr int kBias = 127;
  static constexpr float kSmallest = -104.0f;  // exp is 0 below
  // Best in the relative error of exp(r) - 1, which is 2.3e-9.
  static constexpr float kPolynomial[] = {
      0.5f, 0.166666656733f, 0.0416663587093f, 0.00833338964731f, 0.00139406719245f, 0.000198458888917f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0x1.62e42fefap-1;  // 32 bits
  static constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kFractionBits = 52;
  static constexpr int kBias = 1023;
  static constexpr double kSmallest = -746.0;
  // Taylor's series to r^14: the rest is below 1e-18.
  static constexpr double kPolynomial[] = {
      1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,          1.0 / 5040,         1.0 / 40320,
      1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0, 1.0 / 87178291200.0};
};

// x = n ln2 + r:  returns exp(r) - 1 and leaves 2^(n + kShift) in `scale`.
template <int kShift, typename T>
FASTRNN_INLINE Vec<T> exp_reduced(Vec<T> x, Vec<T>& scale) {
  using C = ExpConstants<T>;
  using V = Vec<T>;
  // The exponent's bias rides along, so that a shift alone makes the power of two.
  constexpr T kBiased = C::kRound + (C::kBias + kShift);
  const V shifted = x * V(C::kLog2e) + V(kBiased);
  const V n = shifted - V(kBiased);
  scale = V::of_bits(shifted.bits() << C::kFractionBits);
  const V r = (x - n * V(C::kLn2High)) - n * V(C::kLn2Low);
  // Even and odd terms apart: two chains of half the length, since it is the latency that limits a cell.
  constexpr int kTerms = sizeof(C::kPolynomial) / sizeof(T);
  constexpr int kLastEven = (kTerms - 1) / 2 * 2, kLastOdd = kTerms / 2 * 2 - 1;
  const V r2 = r * r;
  V even(C::kPolynomial[kLastEven]), odd(C::kPolynomial[kLastOdd]);
#pragma GCC unroll 8
  for (int i = kLastEven - 2; i >= 0; i -= 2) even = even * r2 + V(C::kPolynomial[i]);
#pragma GCC unroll 8
  for (int i = kLastOdd - 2; i >= 0; i -= 2) odd = odd * r2 + V(C::kPolynomial[i]);
  return r + r2 * (even + odd * r);
}

template <typename T>
FASTRNN_INLINE Vec<T> abs(Vec<T> x) {
  using Bits = typename Vec<T>::Bits;
  return Vec<T>::of_bits(x.bits() & ~(Bits{} + (typename Vec<T>::Int{1} << (8 * sizeof(T) - 1))));
}

// `x`, which has no sign, with that of `sign`.
template <typename T>
FASTRNN_INLINE Vec<T> with_sign(Vec<T> x, Vec<T> sign) {
  using Bits = typename Vec<T>::Bits;
  const Bits mask = Bits{} + (typename Vec<T>::Int{1} << (8 * sizeof(T) - 1));
  return Vec<T>::of_bits(x.bits() | (sign.bits() & mask));
}

// `x` between `least` and `most`; NaN stays.
template <typename T>
FASTRNN_INLINE Vec<T> clamp(Vec<T> x, Vec<T> least, Vec<T> most) {
  return min(most, max(least, x));
}

// a / (1 + a) for a >= 0. A step of refinement takes back what the sum loses to rounding.
template <typename T>
FASTRNN_INLINE Vec<T> share(Vec<T> a) {
  using V = Vec<T>;
  const V sum = V(1) + a;
  const V lost = (V(1) - sum) + a;
#if defined(FASTRNN_AVX512)
  // A division would take longer than all the rest. (maskz: as in simd.h.)
  if constexpr (sizeof(T) == 4) {
    const V reciprocal = V::of(_mm512_maskz_rcp14_ps(0xffff, sum.raw));
    const V value = a * reciprocal;
    return value + reciprocal * ((a - value * sum) - value * lost);
  }
#endif
  // 1 / sum is 1 - a / sum. Where a is so large that `lost` is not exact, the bound keeps the result from exceeding 1.
  const V value = a / sum, bounded = max(V(-1), lost);
  return value - value * (bounded - bounded * value);
}

// e / (1 + e) with e = exp(x), subnormal results included.
template <typename T>
FASTRNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using V = Vec<T>;
  constexpr int kShift = 64;  // keeps the power of two normal down to the smallest subnormal
  V scale;
  const V p = exp_reduced<kShift>(clamp(x, V(ExpConstants<T>::kSmallest), V(40)), scale);
  return share((scale + scale * p) * V(T(0x1p-64)));
}

// m / (1 + m) with m = (exp(2 x) - 1) / 2.
template <typename T>
FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
  using V = Vec<T>;
  V half_scale;
  const V p = exp_reduced<-1>(min(V(40), V(2) * abs(x)), half_scale);
  return with_sign(share(half_scale * p + (half_scale - V(T(0.5)))), x);
}

template <typename T>
FASTRNN_INLINE Vec<T> relu(Vec<T> x) {
  return select(x < Vec<T>(0), Vec<T>(0), x);
}

template <typename T>
FASTRNN_INLINE Vec<T> positive(Vec<T> x, Vec<T> value) {
  return select(x > Vec<T>(0), value, Vec<T>(0));
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
