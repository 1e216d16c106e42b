// sigmoid and tanh of vectors, and what else cells.h asks of its accumulator type.
//
// Both rest on exp(z) = 2^n exp(r), z = n ln2 + r, |r| <= ln2 / 2, where exp(r) - 1 is a polynomial. Nothing cancels:
// sigmoid(x) is 1 / (1 + exp(-x)), whose sum is formed with the lesser of its rounding errors; tanh(|x|) is m / (1 + m) with
// m = (exp(2 |x|) - 1) / 2, and takes back what that sum loses. Errors, subnormal results included: at most 2 units in the
// last place, 2.1 for tanh, 2.5 where the target has no FMA (tests/cpp/simd_accuracy.cpp).
#pragma once

#include "simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// exp(r) - 1 = r + r^2 p(r), and ln2 in two parts, of which the first has so few bits that its multiples by n are exact without FMA.
template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
  static constexpr int kFractionBits = 23;
  static constexpr int kBias = 127;
  static constexpr float kSmallest = -104.0f;  // exp is 0 below
  // p, best in the relative error of exp(r), which is 3.1e-9,
  static constexpr float kOfExp[] = {0.49999994f, 0.16666521f, 0.041668389f, 0.0083687166f, 0.0013814599f};
  // and in that of exp(r) - 1, which is 2.4e-10.
  static constexpr float kOfExpMinus1[] = {0.5f,          0.16666666f,   0.041666362f,
                                           0.0083333896f, 0.0013940628f, 0.00019845879f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kFractionBits = 52;
  static constexpr int kBias = 1023;
  static constexpr double kSmallest = -746.0;
  // Taylor's series to r^14: the rest is below 1e-18.
  static constexpr double kOfExp[] = {
      1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,          1.0 / 5040,         1.0 / 40320,
      1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0, 1.0 / 87178291200.0};
  static constexpr auto& kOfExpMinus1 = kOfExp;
};

// n, the integer nearest to `factor` x; leaves 2^(n + kShift) in `scale`.
template <int kShift, typename T>
FASTRNN_INLINE Vec<T> nearest_power(Vec<T> x, T factor, Vec<T>& scale) {
  using C = ExpConstants<T>;
  using V = Vec<T>;
  // The exponent's bias rides along, so that a shift alone makes the power of two.
  constexpr T kBiased = C::kRound + (C::kBias + kShift);
  const V shifted = x * V(factor) + V(kBiased);
  scale = V::of_bits(shifted.bits() << C::kFractionBits);
  return shifted - V(kBiased);
}

// (exp(kFactor r) - 1) / kFactor
template <int kFactor, typename T, size_t kTerms>
FASTRNN_INLINE Vec<T> exp_minus_1(Vec<T> r, const T (&coefficients)[kTerms]) {
  using V = Vec<T>;
  const auto term = [&](int i) __attribute__((always_inline)) {
    T factor = 1;
#pragma GCC unroll 16
    for (int n = 0; n <= i; ++n) factor *= kFactor;
    return V(coefficients[i] * factor);
  };
  // Even and odd terms apart: two chains of half the length, since it is the latency that limits a cell.
  constexpr int kLastEven = (kTerms - 1) / 2 * 2, kLastOdd = kTerms / 2 * 2 - 1;
  const V r2 = r * r;
  V even = term(kLastEven), odd = term(kLastOdd);
#pragma GCC unroll 8
  for (int i = kLastEven - 2; i >= 0; i -= 2) even = even * r2 + term(i);
#pragma GCC unroll 8
  for (int i = kLastOdd - 2; i >= 0; i -= 2) odd = odd * r2 + term(i);
  return r2 * (even + odd * r) + r;
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

#if defined(FASTRNN_AVX512)
// 1 / x, off by 2^-14 of it: what takes the place of a division that would take longer than all the rest. (maskz: as in simd.h.)
FASTRNN_INLINE Vec<float> rough_reciprocal(Vec<float> x) {
  return Vec<float>::of(_mm512_maskz_rcp14_ps(0xffff, x.raw));
}
#endif

// 1 / (1 + exp(-x)), subnormal results included.
template <typename T>
FASTRNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using V = Vec<T>;
  using C = ExpConstants<T>;
  // Above and below the line times 2^-64, which keeps both normal down to the smallest subnormal.
  constexpr int kShift = -64;
  const V one(T(0x1p-64));
  V scale;
  x = clamp(x, V(C::kSmallest), V(40));
  const V n = nearest_power<kShift>(x, -C::kLog2e, scale);
  const V r = (x + n * V(C::kLn2High)) + n * V(C::kLn2Low);  // -x = n ln2 - r
  const V sum = scale + (one - scale * exp_minus_1<-1>(r, C::kOfExp));
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 4) {
    const V reciprocal = rough_reciprocal(sum), value = one * reciprocal, error = V(1) - reciprocal * sum;
    return value + value * (error + error * error);
  }
#endif
  return one / sum;
}

// m / (1 + m) with m = (exp(2 |x|) - 1) / 2.
template <typename T>
FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
  using V = Vec<T>;
  using C = ExpConstants<T>;
  V scale;
  const V y = min(V(20), abs(x));
  const V n = nearest_power<0>(y, 2 * C::kLog2e, scale);
  const V r = y - n * V((C::kLn2High + C::kLn2Low) /
                        2);  // 2 y = n ln2 + 2 r, in one piece, since a large n does not count here
  const V m = scale * exp_minus_1<2>(r, C::kOfExpMinus1) + (scale * V(T(0.5)) - V(T(0.5)));
  const V sum = V(1) + m, lost = (V(1) - sum) + m;
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 4) {
    const V reciprocal = rough_reciprocal(sum), value = m * reciprocal;
    return with_sign(value + reciprocal * ((m - value * sum) - value * lost), x);
  }
#endif
  // 1 / sum is 1 - m / sum. Where m is so large that `lost` is not exact, the bound keeps the result from exceeding 1.
  const V value = m / sum, bounded = max(V(-1), lost);
  return with_sign(value - value * (bounded - bounded * value), x);
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
