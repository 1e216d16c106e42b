// What a product multiplies: values of the accumulator's type or, where the CPU sums products of bfloat16 in pairs
// (AVX512-BF16), pairs of them. A pair holds two steps of k in one lane of 32 bits; its products are summed in float, as those of
// widened values are, but subnormal values count as 0. Nothing else of a panel, a tile or a sum differs.
#pragma once

#include "simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Scalar>
struct FactorOf {
  using type = typename AccOf<Scalar>::type;
};

template <typename Factor>
struct FactorTraits {
  static constexpr int kSteps = 1;  // of k in a factor
  using Element = Factor;           // as what rows wait for a product that packs only the other operand

  // Factors of one row (or column), `lanes` steps of k from here on, which are adjacent in memory. A part counts steps.
  template <typename Scalar, typename Lanes>
  FASTRNN_INLINE static Vec<Factor> along_k(const Scalar* from, Lanes lanes) {
    return load(from, lanes);
  }
  // Factors of adjacent rows: their values at kSteps steps of k, the second at `next`, which is nullptr if there is none.
  template <typename Scalar, typename Lanes>
  FASTRNN_INLINE static Vec<Factor> across_k(const Scalar* from, const Scalar* /*next*/, Lanes lanes) {
    return load(from, lanes);
  }
  // The factor that begins here, in every lane.
  FASTRNN_INLINE static Vec<Factor> broadcast(const Element* from, Whole) { return *from; }
};

template <typename T>
FASTRNN_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> sum) {
  return sum + a * b;
}

#if defined(FASTRNN_AVX512_BF16)

struct Bfloat16Pair {
  uint32_t bits;  // the first in the low half
};

template <>
struct Vec<Bfloat16Pair> {
  static constexpr int kLanes = Float::kLanes;
  using Raw = Bits32;
  using Bits = Float::Bits;

  Raw raw;

  Vec() = default;
  FASTRNN_INLINE Vec(Bfloat16Pair pair) : raw(pair.bits - Raw{}) {}
  FASTRNN_INLINE static Vec of(Raw raw) {
    Vec vec;
    vec.raw = raw;
    return vec;
  }
};
using Pairs = Vec<Bfloat16Pair>;

FASTRNN_INLINE Pairs load(const Bfloat16Pair* from, Whole) { return Pairs::of(load_raw(&from->bits, Whole{})); }
FASTRNN_INLINE void store(Bfloat16Pair* to, Pairs pairs, Whole) { store_raw(&to->bits, pairs.raw, Whole{}); }

template <>
struct FactorOf<Bfloat16> {
  using type = Bfloat16Pair;
};

template <>
struct FactorTraits<Bfloat16Pair> {
  static constexpr int kSteps = 2;
  using Element = Bfloat16;

  FASTRNN_INLINE static Pairs along_k(const Bfloat16* from, Whole) {
    return Pairs::of(reinterpret_cast<Bits32>(_mm512_loadu_si512(from)));
  }
  FASTRNN_INLINE static Pairs along_k(const Bfloat16* from, Part part) {
    return Pairs::of(reinterpret_cast<Bits32>(_mm512_maskz_loadu_epi16(lane_mask(part), from)));
  }
  template <typename Lanes>
  FASTRNN_INLINE static Pairs across_k(const Bfloat16* from, const Bfloat16* next, Lanes lanes) {
    const auto step = [lanes](const Bfloat16* row) __attribute__((always_inline)) {
      return __builtin_convertvector(load_raw(reinterpret_cast<const uint16_t*>(row), lanes), Bits32);
    };
    const Bits32 first = step(from);
    return Pairs::of(next ? first | step(next) << 16 : first);
  }
  FASTRNN_INLINE static Pairs broadcast(const Bfloat16* from, Whole) {
    Bfloat16Pair pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return pair;
  }
  // The last step of an odd number.
  FASTRNN_INLINE static Pairs broadcast(const Bfloat16* from, Part) { return Bfloat16Pair{from->bits}; }
};

FASTRNN_INLINE Float multiply_add(Pairs a, Pairs b, Float sum) {
  return Float::of(_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(a.raw), reinterpret_cast<__m512bh>(b.raw)));
}

#endif

// Factors of so many steps of k; the last may be a part, filled up with zeros.
template <typename Factor>
constexpr int64_t num_factors(int64_t steps) {
  return (steps + FactorTraits<Factor>::kSteps - 1) / FactorTraits<Factor>::kSteps;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
