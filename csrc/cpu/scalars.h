// Single numbers of a storage type, outside of vector code (simd.h has that).
#pragma once

#include <cstdint>
#include <cstring>

#include "../params.h"
#include "storage.h"

namespace fastrnn::cpu {

#if defined(__aarch64__)
using Float16 = __fp16;  // g++ before 13 has no _Float16 there
#else
using Float16 = _Float16;
#endif

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Float16 x) { return x; }
inline float widen(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, Float16& out) { out = static_cast<Float16>(x); }
inline void narrow(float x, Bfloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  // round to nearest even; a NaN keeps its upper bits and stays one
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

inline double read_scalar(const void* value, ScalarKind scalar) {
  const auto read = [value](auto number) {
    std::memcpy(&number, value, sizeof number);
    return static_cast<double>(widen(number));
  };
  switch (scalar) {
    case ScalarKind::kFloat: return read(float{});
    case ScalarKind::kDouble: return read(double{});
    case ScalarKind::kHalf: return read(Float16{});
    default: return read(Bfloat16{});
  }
}

inline void write_scalar(double value, void* out, ScalarKind scalar) {
  const auto write = [out](auto from, auto number) {
    narrow(from, number);
    std::memcpy(out, &number, sizeof number);
  };
  const float single = static_cast<float>(value);
  switch (scalar) {
    case ScalarKind::kFloat: return write(single, float{});
    case ScalarKind::kDouble: return write(value, double{});
    case ScalarKind::kHalf: return write(single, Float16{});
    default: return write(single, Bfloat16{});
  }
}

}  // namespace fastrnn::cpu
