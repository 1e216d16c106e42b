// The 16-bit storage types of the CPU engine, as bits: their conversions are vector code (simd.h).
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

struct Half {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

// What a storage type is computed in.
template <typename Scalar>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

}  // namespace fastrnn::cpu
