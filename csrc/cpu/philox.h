// Factors of dropout, drawn by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), which makes four
// numbers of a counter and a key: what a factor is depends on the seed and its place alone, never on threads or vectors.
//
// A block is what 16 counters in turn give: their first numbers, their second ones, and so on.
#pragma once

#include "dropout.h"
#include "simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// A block in the making. A number of 32 bits lies in the lower half of a lane of 64, where its products have room; what the upper half
// holds does not matter.
class PhiloxBlock {
  static constexpr int kCounters = 16;

 public:
  static constexpr int kNumbers = 4 * kCounters;

  FASTRNN_INLINE PhiloxBlock(int64_t index, uint64_t seed) {
    for (int v = 0; v < kVectors; ++v) {
      for (int lane = 0; lane < kLanes; ++lane)
        numbers_[0][v][lane] = static_cast<uint64_t>(index * kCounters + v * kLanes + lane);
      numbers_[1][v] = numbers_[0][v] >> 32;
      numbers_[2][v] = numbers_[3][v] = Lanes64{};
    }
    uint64_t key[2] = {seed, seed >> 32};
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < kVectors; ++v) {
        const Lanes64 first = multiply(numbers_[0][v], 0xD2511F53), second = multiply(numbers_[2][v], 0xCD9E8D57);
        numbers_[0][v] = second >> 32 ^ numbers_[1][v] ^ key[0];
        numbers_[1][v] = second;
        numbers_[2][v] = first >> 32 ^ numbers_[3][v] ^ key[1];
        numbers_[3][v] = first;
      }
      key[0] += 0x9E3779B9;
      key[1] += 0xBB67AE85;
    }
  }

  // For each number below `dropped` 0, else `kept`.
  template <typename Bits>
  FASTRNN_INLINE void put_factors(uint64_t dropped, Bits kept, Bits* to) const {
    for (const auto& vectors : numbers_)
      for (const Lanes64& lanes : vectors)
        for (int lane = 0; lane < kLanes; ++lane) *to++ = (lanes[lane] & UINT32_MAX) < dropped ? Bits{0} : kept;
  }

 private:
  static constexpr int kLanes = kVectorBytes / 8, kVectors = kCounters / kLanes;
  typedef uint64_t Lanes64 __attribute__((vector_size(kVectorBytes)));

  // Of the lower halves.
  FASTRNN_INLINE static Lanes64 multiply(Lanes64 x, uint32_t factor) {
#if defined(FASTRNN_AVX512)
    return reinterpret_cast<Lanes64>(
        _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(x), _mm512_set1_epi64(factor)));
#elif defined(FASTRNN_AVX2)
    return reinterpret_cast<Lanes64>(_mm256_mul_epu32(reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(factor)));
#else
    return (x & uint64_t{UINT32_MAX}) * uint64_t{factor};
#endif
  }

  Lanes64 numbers_[4][kVectors];
};

// The factors from `first` on, which begins a block, to `last`.
template <typename Bits>
void draw(const Drawing& drawing, int64_t first, int64_t last) {
  constexpr int kNumbers = PhiloxBlock::kNumbers;
  static_assert(kDrawnAtOnce % kNumbers == 0);
  Bits* const factors = static_cast<Bits*>(drawing.factors);
  Bits kept;
  __builtin_memcpy(&kept, &drawing.kept, sizeof kept);
  for (; first + kNumbers <= last; first += kNumbers)
    PhiloxBlock(first / kNumbers, drawing.seed).put_factors(drawing.dropped, kept, factors + first);
  if (first == last) return;
  Bits rest[kNumbers];
  PhiloxBlock(first / kNumbers, drawing.seed).put_factors(drawing.dropped, kept, rest);
  for (int64_t i = first; i < last; ++i) factors[i] = rest[i - first];
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
