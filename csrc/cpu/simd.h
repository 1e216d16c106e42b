// Vectors of float or double as wide as the instruction set's registers, their loads and stores.
//
// An instruction set is a namespace, FASTRNN_ISA, and a width, FASTRNN_VECTOR_BYTES, both set by isa_*.cpp. The arithmetic
// is the compiler's vector extension; intrinsics serve what that cannot say: masked access and half precision. Everything
// here is inlined or lives in the namespace, so that the linker never picks code of one instruction set for another.
//
// The last vector of a row may be a part: the number of its first lanes that exist. `Whole` and `Part` choose the access;
// lanes that do not exist are read as 0 and not written, and their memory is not touched.
#pragma once

#include <cstdint>

#include "storage.h"

#define FASTRNN_INLINE inline __attribute__((always_inline))

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int kVectorBytes = FASTRNN_VECTOR_BYTES;

// Whether a * b + c is one rounding: GCC contracts it to an FMA wherever the target has one.
#if defined(FASTRNN_AVX512) || defined(FASTRNN_AVX2) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

template <typename T>
struct IntOf {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

template <typename T>
struct Vec {
  using Element = T;
  using Int = typename IntOf<T>::type;
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T Raw __attribute__((vector_size(kVectorBytes)));
  typedef Int Bits __attribute__((vector_size(kVectorBytes)));  // also what a comparison gives: -1 or 0 in each lane

  Raw raw;

  Vec() = default;
  FASTRNN_INLINE Vec(T scalar) : raw(scalar - Raw{}) {}
  FASTRNN_INLINE static Vec of(Raw raw) {
    Vec vec;
    vec.raw = raw;
    return vec;
  }
  FASTRNN_INLINE static Vec of_bits(Bits bits) { return of(reinterpret_cast<Raw>(bits)); }
  FASTRNN_INLINE Bits bits() const { return reinterpret_cast<Bits>(raw); }

  FASTRNN_INLINE Vec operator-() const { return of(-raw); }
  FASTRNN_INLINE Vec& operator+=(Vec other) {
    raw += other.raw;
    return *this;
  }
  FASTRNN_INLINE Vec& operator*=(Vec other) {
    raw *= other.raw;
    return *this;
  }
  FASTRNN_INLINE friend Vec operator+(Vec a, Vec b) { return of(a.raw + b.raw); }
  FASTRNN_INLINE friend Vec operator-(Vec a, Vec b) { return of(a.raw - b.raw); }
  FASTRNN_INLINE friend Vec operator*(Vec a, Vec b) { return of(a.raw * b.raw); }
  FASTRNN_INLINE friend Vec operator/(Vec a, Vec b) { return of(a.raw / b.raw); }
  FASTRNN_INLINE friend Bits operator<(Vec a, Vec b) { return a.raw < b.raw; }
  FASTRNN_INLINE friend Bits operator>(Vec a, Vec b) { return a.raw > b.raw; }
};

template <typename V>
FASTRNN_INLINE V select(typename V::Bits mask, V a, V b) {
  return V::of(mask ? a.raw : b.raw);
}

using Float = Vec<float>;
using Double = Vec<double>;
// As many doubles as there are lanes.
template <typename T>
struct WideOf {
  using type = Double::Raw;
};
template <>
struct WideOf<float> {
  typedef double type __attribute__((vector_size(2 * kVectorBytes)));
};

// By halves, so that few additions wait for each other.
template <int kLanes, typename Wide>
FASTRNN_INLINE double sum_of_lanes(Wide x) {
  double lanes[kLanes];
  __builtin_memcpy(lanes, &x, sizeof(x));
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The larger and the smaller of two; b where one is NaN, as the instructions have it.
template <typename V>
FASTRNN_INLINE V max(V a, V b) {
  return select(a > b, a, b);
}
template <typename V>
FASTRNN_INLINE V min(V a, V b) {
  return select(a < b, a, b);
}
#if defined(FASTRNN_AVX512)
FASTRNN_INLINE Float max(Float a, Float b) { return Float::of(_mm512_maskz_max_ps(0xffff, a.raw, b.raw)); }
FASTRNN_INLINE Float min(Float a, Float b) { return Float::of(_mm512_maskz_min_ps(0xffff, a.raw, b.raw)); }
#elif defined(FASTRNN_AVX2)
FASTRNN_INLINE Float max(Float a, Float b) { return Float::of(_mm256_max_ps(a.raw, b.raw)); }
FASTRNN_INLINE Float min(Float a, Float b) { return Float::of(_mm256_min_ps(a.raw, b.raw)); }
#endif

// What a vector of floats is in a 16-bit storage type.
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));

// ---- Conversions between float and the 16-bit types: to nearest even, NaN stays NaN.

typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

FASTRNN_INLINE Float widen(Bits16 bits, Bfloat16) {
  return Float::of_bits(reinterpret_cast<Float::Bits>(__builtin_convertvector(bits, Bits32) << 16));
}

FASTRNN_INLINE Bits16 narrow(Float x, Bfloat16) {
  const Bits32 bits = reinterpret_cast<Bits32>(x.raw);
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(x.raw == x.raw ? rounded : ((bits >> 16) | 0x40), Bits16);
}

#if defined(FASTRNN_AVX512)
// maskz with every lane: g++ warns of the plain intrinsics' undefined source.
FASTRNN_INLINE Float widen(Bits16 bits, Half) {
  return Float::of(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(bits)));
}
FASTRNN_INLINE Bits16 narrow(Float x, Half) {
  return reinterpret_cast<Bits16>(_mm512_maskz_cvtps_ph(0xffff, x.raw, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(FASTRNN_AVX2)
FASTRNN_INLINE Float widen(Bits16 bits, Half) { return Float::of(_mm256_cvtph_ps(reinterpret_cast<__m128i>(bits))); }
FASTRNN_INLINE Bits16 narrow(Float x, Half) {
  return reinterpret_cast<Bits16>(_mm256_cvtps_ph(x.raw, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Half's exponent and fraction in float's place read 2^112 too small, subnormals included.
FASTRNN_INLINE Float widen(Bits16 bits, Half) {
  const Bits32 wide = __builtin_convertvector(bits, Bits32), magnitude = wide & 0x7fff;
  const Bits32 finite = reinterpret_cast<Bits32>(reinterpret_cast<Float::Raw>(magnitude << 13) * 0x1p112f);
  const Bits32 value = magnitude >= 0x7c00 ? ((magnitude << 13) | 0x7f800000) : finite;
  return Float::of_bits(reinterpret_cast<Float::Bits>(value | ((wide & 0x8000) << 16)));
}
FASTRNN_INLINE Bits16 narrow(Float x, Half) {
  const Bits32 bits = reinterpret_cast<Bits32>(x.raw), magnitude = bits & 0x7fffffff;
  const Bits32 normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  // 0.5 has the last place of a half's subnormals: the addition rounds to it.
  const Float::Raw shifted = reinterpret_cast<Float::Raw>(magnitude) + 0.5f;
  const Bits32 subnormal = reinterpret_cast<Bits32>(shifted) - 0x3f000000;
  Bits32 value = magnitude < 0x38800000 ? subnormal : normal;
  value = magnitude >= 0x477ff000 ? (Bits32{} + 0x7c00) : value;
  value = magnitude > 0x7f800000 ? (0x7e00 | ((magnitude >> 13) & 0x1ff)) : value;
  return __builtin_convertvector(value | ((bits >> 16) & 0x8000), Bits16);
}
#endif

// ---- Loads and stores.

struct Whole {};
struct Part {
  int lanes;  // 1 to kLanes - 1
};

// Copies the first `lanes` of a vector's elements, in pieces of powers of two.
template <typename T, int kMost>
FASTRNN_INLINE void copy_part(T* to, const T* from, int lanes) {
  int done = 0;
#pragma GCC unroll 4
  for (int piece = kMost / 2; piece > 0; piece /= 2) {
    if (!(lanes & piece)) continue;
    // The size must be a constant for the copy to be an instruction.
    switch (piece * static_cast<int>(sizeof(T))) {
      case 2: __builtin_memcpy(to + done, from + done, 2); break;
      case 4: __builtin_memcpy(to + done, from + done, 4); break;
      case 8: __builtin_memcpy(to + done, from + done, 8); break;
      case 16: __builtin_memcpy(to + done, from + done, 16); break;
      case 32: __builtin_memcpy(to + done, from + done, 32); break;
    }
    done += piece;
  }
}

// Vectors in memory: of any alignment, and aliasing nothing but their elements.
template <typename T>
struct Memory {
  typedef T Raw __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(4)));
};
template <>
struct Memory<uint16_t> {
  using Raw = Bits16;
  typedef uint16_t Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(2)));
};

template <typename T>
FASTRNN_INLINE typename Memory<T>::Raw load_raw(const T* from, Whole) {
  return *reinterpret_cast<const typename Memory<T>::Unaligned*>(from);
}
template <typename T>
FASTRNN_INLINE void store_raw(T* to, typename Memory<T>::Raw raw, Whole) {
  *reinterpret_cast<typename Memory<T>::Unaligned*>(to) = raw;
}
template <typename T>
FASTRNN_INLINE typename Memory<T>::Raw load_raw(const T* from, Part part) {
  constexpr int kElements = sizeof(typename Memory<T>::Raw) / sizeof(T);
  T buffer[kElements] = {};
  copy_part<T, kElements>(buffer, from, part.lanes);
  return load_raw(buffer, Whole{});
}
template <typename T>
FASTRNN_INLINE void store_raw(T* to, typename Memory<T>::Raw raw, Part part) {
  constexpr int kElements = sizeof(typename Memory<T>::Raw) / sizeof(T);
  T buffer[kElements];
  store_raw(buffer, raw, Whole{});
  copy_part<T, kElements>(to, buffer, part.lanes);
}

#if defined(FASTRNN_AVX512)
FASTRNN_INLINE uint32_t lane_mask(Part part) { return (1u << part.lanes) - 1; }
template <>
FASTRNN_INLINE Float::Raw load_raw(const float* from, Part part) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(lane_mask(part)), from);
}
template <>
FASTRNN_INLINE Double::Raw load_raw(const double* from, Part part) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(lane_mask(part)), from);
}
template <>
FASTRNN_INLINE Bits16 load_raw(const uint16_t* from, Part part) {
  return reinterpret_cast<Bits16>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(lane_mask(part)), from));
}
template <>
FASTRNN_INLINE void store_raw(float* to, Float::Raw raw, Part part) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(lane_mask(part)), raw);
}
template <>
FASTRNN_INLINE void store_raw(double* to, Double::Raw raw, Part part) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(lane_mask(part)), raw);
}
template <>
FASTRNN_INLINE void store_raw(uint16_t* to, Bits16 raw, Part part) {
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(lane_mask(part)), reinterpret_cast<__m256i>(raw));
}
#elif defined(FASTRNN_AVX2)
// Loads alone: some CPUs store through a mask at a twentieth of the speed.
template <>
FASTRNN_INLINE Float::Raw load_raw(const float* from, Part part) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(part.lanes), lanes));
}
template <>
FASTRNN_INLINE Double::Raw load_raw(const double* from, Part part) {
  const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
  return _mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(part.lanes), lanes));
}
#endif

template <typename Lanes>
FASTRNN_INLINE Float load(const float* from, Lanes lanes) {
  return Float::of(load_raw(from, lanes));
}
template <typename Lanes>
FASTRNN_INLINE Double load(const double* from, Lanes lanes) {
  return Double::of(load_raw(from, lanes));
}
template <typename Lanes>
FASTRNN_INLINE Float load(const Half* from, Lanes lanes) {
  return widen(load_raw(reinterpret_cast<const uint16_t*>(from), lanes), Half{});
}
template <typename Lanes>
FASTRNN_INLINE Float load(const Bfloat16* from, Lanes lanes) {
  return widen(load_raw(reinterpret_cast<const uint16_t*>(from), lanes), Bfloat16{});
}
template <typename Lanes>
FASTRNN_INLINE void store(float* to, Float x, Lanes lanes) {
  store_raw(to, x.raw, lanes);
}
template <typename Lanes>
FASTRNN_INLINE void store(double* to, Double x, Lanes lanes) {
  store_raw(to, x.raw, lanes);
}
template <typename Lanes>
FASTRNN_INLINE void store(Half* to, Float x, Lanes lanes) {
  store_raw(reinterpret_cast<uint16_t*>(to), narrow(x, Half{}), lanes);
}
template <typename Lanes>
FASTRNN_INLINE void store(Bfloat16* to, Float x, Lanes lanes) {
  store_raw(reinterpret_cast<uint16_t*>(to), narrow(x, Bfloat16{}), lanes);
}

// The value that storing leaves.
template <typename Scalar, typename V>
FASTRNN_INLINE V rounded(V x) {
  if constexpr (sizeof(Scalar) == sizeof(typename V::Element))
    return x;
  else
    return widen(narrow(x, Scalar{}), Scalar{});
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
