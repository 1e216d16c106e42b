#include "norms.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

namespace fastrnn::cpu {
namespace {

// Work is dealt out in blocks of this many elements: each has one partial sum, so the total never depends on the threads.
constexpr int64_t kBlock = 1 << 15;

struct Block {
  void* data;
  int64_t size;
  ScalarKind scalar;
};

std::vector<Block> blocks_of(const std::vector<Span>& spans) {
  constexpr int kBytes[] = {4, 8, 2, 2};  // by ScalarKind
  std::vector<Block> blocks;
  for (const Span& span : spans)
    for (int64_t start = 0; start < span.size; start += kBlock)
      blocks.push_back({static_cast<char*>(span.data) + start * kBytes[static_cast<int>(span.scalar)],
                        std::min(kBlock, span.size - start), span.scalar});
  return blocks;
}

struct Bfloat16Bits {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(_Float16 x) { return x; }
inline float widen(Bfloat16Bits x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, _Float16& out) { out = static_cast<_Float16>(x); }
inline void narrow(float x, Bfloat16Bits& out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  // round to nearest even; a NaN keeps its upper bits and stays one
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTRNN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTRNN_CLONES
#endif

#define FASTRNN_NORM_LOOPS(name, Scalar)                                               \
  FASTRNN_CLONES double sum_##name(const Scalar* x, int64_t n) {                       \
    double sum = 0;                                                                    \
    _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; ++i) {           \
      const double value = widen(x[i]);                                                \
      sum += value * value;                                                            \
    }                                                                                  \
    return sum;                                                                        \
  }                                                                                    \
  FASTRNN_CLONES void scale_##name(Scalar* x, int64_t n, double factor) {              \
    using Acc = decltype(widen(Scalar{}));                                             \
    const Acc f = static_cast<Acc>(factor);                                            \
    _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) narrow(widen(x[i]) * f, x[i]); \
  }
FASTRNN_NORM_LOOPS(float, float)
FASTRNN_NORM_LOOPS(double, double)
FASTRNN_NORM_LOOPS(half, _Float16)
FASTRNN_NORM_LOOPS(bfloat16, Bfloat16Bits)
#undef FASTRNN_NORM_LOOPS

double block_sum(const Block& block) {
  switch (block.scalar) {
    case ScalarKind::kFloat: return sum_float(static_cast<const float*>(block.data), block.size);
    case ScalarKind::kDouble: return sum_double(static_cast<const double*>(block.data), block.size);
    case ScalarKind::kHalf: return sum_half(static_cast<const _Float16*>(block.data), block.size);
    default: return sum_bfloat16(static_cast<const Bfloat16Bits*>(block.data), block.size);
  }
}

void block_scale(const Block& block, double factor) {
  switch (block.scalar) {
    case ScalarKind::kFloat: return scale_float(static_cast<float*>(block.data), block.size, factor);
    case ScalarKind::kDouble: return scale_double(static_cast<double*>(block.data), block.size, factor);
    case ScalarKind::kHalf: return scale_half(static_cast<_Float16*>(block.data), block.size, factor);
    default: return scale_bfloat16(static_cast<Bfloat16Bits*>(block.data), block.size, factor);
  }
}

int team_size(size_t num_blocks, int num_threads) {
  return static_cast<int>(std::min<size_t>(num_blocks, static_cast<size_t>(std::max(num_threads, 1))));
}

}  // namespace

double sum_of_squares(const std::vector<Span>& spans, int num_threads) {
  const std::vector<Block> blocks = blocks_of(spans);
  std::vector<double> sums(blocks.size());
  const int64_t count = static_cast<int64_t>(blocks.size());
#pragma omp parallel for num_threads(team_size(blocks.size(), num_threads)) schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) sums[i] = block_sum(blocks[i]);
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void scale(const std::vector<Span>& spans, double factor, int num_threads) {
  const std::vector<Block> blocks = blocks_of(spans);
  const int64_t count = static_cast<int64_t>(blocks.size());
#pragma omp parallel for num_threads(team_size(blocks.size(), num_threads)) schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) block_scale(blocks[i], factor);
}

}  // namespace fastrnn::cpu
