// Single numbers of a storage type, outside of vector code (simd.h has that).
#pragma once

#include <cstdint>
#include <cstring>

#include "../params.h"

namespace fastrnn::cpu {

struct Bfloat16Bits {
  uint16_t bits;
};

#if defined(__aarch64__)
using Float16 = __fp16;  // g++ before 13 has no _Float16 there
#else
using Float16 = _Float16;
#endif

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Float16 x) { return x; }
inline float widen(Bfloat16Bits x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, Float16& out) { out = static_cast<Float16>(x); }
inline void narrow(float x, Bfloat16Bits& out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  // round to nearest even; a NaN keeps its upper bits and stays one
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

template <typename Scalar>
double read(const void* value) {
  return widen(*static_cast<const Scalar*>(value));
}

inline double read_scalar(const void* value, ScalarKind scalar) {
  switch (scalar) {
    case ScalarKind::kFloat: return read<float>(value);
    case ScalarKind::kDouble: return read<double>(value);
    case ScalarKind::kHalf: return read<Float16>(value);
    default: return read<Bfloat16Bits>(value);
  }
}

inline void write_scalar(double value, void* out, ScalarKind scalar) {
  switch (scalar) {
    case ScalarKind::kFloat: return narrow(static_cast<float>(value), *static_cast<float*>(out));
    case ScalarKind::kDouble: return narrow(value, *static_cast<double*>(out));
    case ScalarKind::kHalf: return narrow(static_cast<float>(value), *static_cast<Float16*>(out));
    default: return narrow(static_cast<float>(value), *static_cast<Bfloat16Bits*>(out));
  }
}

}  // namespace fastrnn::cpu
