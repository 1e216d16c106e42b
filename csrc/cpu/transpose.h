// Transposition of a square of values in registers: kLanes vectors of kLanes values. First inside blocks of 128 bits, then the
// blocks among each other; every step below is one instruction for each vector.
#pragma once

#include "simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Acc>
constexpr int kBlockLanes = 16 / static_cast<int>(sizeof(Acc));

// Where lane `lane` of the low (half = 0) or high (1) result comes from; y's lanes count on from x's.
// Inside each block, x's and y's lanes in turn.
template <typename Acc>
constexpr int interleaved_lane(int lane, int half) {
  constexpr int block = kBlockLanes<Acc>;
  const int inside = lane % block;
  return lane - inside + half * block / 2 + inside / 2 + inside % 2 * Vec<Acc>::kLanes;
}
// The even (low) or odd (high) blocks of x, then those of y.
template <typename Acc>
constexpr int separated_lane(int lane, int half) {
  constexpr int block = kBlockLanes<Acc>;
  return (lane / block * 2 + half) * block + lane % block;
}

template <typename Acc, size_t... kLane>
FASTRNN_INLINE void interleave(Vec<Acc>& x, Vec<Acc>& y, std::index_sequence<kLane...>) {
  const typename Vec<Acc>::Raw low = __builtin_shufflevector(x.raw, y.raw, interleaved_lane<Acc>(kLane, 0)...);
  y.raw = __builtin_shufflevector(x.raw, y.raw, interleaved_lane<Acc>(kLane, 1)...);
  x.raw = low;
}
template <typename Acc, size_t... kLane>
FASTRNN_INLINE void separate(Vec<Acc>& x, Vec<Acc>& y, std::index_sequence<kLane...>) {
  const typename Vec<Acc>::Raw low = __builtin_shufflevector(x.raw, y.raw, separated_lane<Acc>(kLane, 0)...);
  y.raw = __builtin_shufflevector(x.raw, y.raw, separated_lane<Acc>(kLane, 1)...);
  x.raw = low;
}

template <typename Acc>
FASTRNN_INLINE void transpose(Vec<Acc> (&rows)[Vec<Acc>::kLanes]) {
  constexpr int pairs = Vec<Acc>::kLanes / 2;
  constexpr std::make_index_sequence<Vec<Acc>::kLanes> lanes{};
#pragma GCC unroll 4
  for (int distance = kBlockLanes<Acc> / 2; distance >= 1; distance /= 2) {
#pragma GCC unroll 8
    for (int pair = 0; pair < pairs; ++pair) {
      const int i = pair + pair / distance * distance;
      interleave<Acc>(rows[i], rows[i + distance], lanes);
    }
  }
#pragma GCC unroll 4
  for (int distance = kBlockLanes<Acc>; distance <= pairs; distance *= 2) {
#pragma GCC unroll 8
    for (int pair = 0; pair < pairs; ++pair) {
      const int i = pair + pair / distance * distance;
      separate<Acc>(rows[i], rows[i + distance], lanes);
    }
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
