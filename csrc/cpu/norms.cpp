#include "norms.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "scalars.h"

namespace fastrnn::cpu {
namespace {

struct Block {
  void* data;
  int64_t size;
  ScalarKind scalar;
};

std::vector<Block> blocks_of(const std::vector<Span>& spans) {
  std::vector<Block> blocks;
  for (const Span& span : spans)
    for (int64_t start = 0; start < span.size; start += kNormBlock)
      blocks.push_back({static_cast<char*>(span.data) + start * bytes_of(span.scalar),
                        std::min(kNormBlock, span.size - start), span.scalar});
  return blocks;
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
FASTRNN_NORM_LOOPS(half, Float16)
FASTRNN_NORM_LOOPS(bfloat16, Bfloat16)
#undef FASTRNN_NORM_LOOPS

double block_sum(const Block& block) {
  switch (block.scalar) {
    case ScalarKind::kFloat: return sum_float(static_cast<const float*>(block.data), block.size);
    case ScalarKind::kDouble: return sum_double(static_cast<const double*>(block.data), block.size);
    case ScalarKind::kHalf: return sum_half(static_cast<const Float16*>(block.data), block.size);
    default: return sum_bfloat16(static_cast<const Bfloat16*>(block.data), block.size);
  }
}

void block_scale(const Block& block, double factor) {
  switch (block.scalar) {
    case ScalarKind::kFloat: return scale_float(static_cast<float*>(block.data), block.size, factor);
    case ScalarKind::kDouble: return scale_double(static_cast<double*>(block.data), block.size, factor);
    case ScalarKind::kHalf: return scale_half(static_cast<Float16*>(block.data), block.size, factor);
    default: return scale_bfloat16(static_cast<Bfloat16*>(block.data), block.size, factor);
  }
}

// Threads that are worth waking for so many blocks.
int team_size(int64_t num_blocks, int num_threads) {
  constexpr int64_t kBlocksPerThread = 4;
  return static_cast<int>(std::clamp<int64_t>(num_blocks / kBlocksPerThread, 1, std::max(num_threads, 1)));
}

}  // namespace

void sum_of_squares(const NormParams& params, int num_threads) {
  const std::vector<Block> blocks = blocks_of(params.spans);
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int team = team_size(count, num_threads);
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t i = 0; i < count; ++i) params.partial[i] = block_sum(blocks[i]);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += params.partial[i];
  for (const double* sum : params.known) total += *sum;
  write_scalar(params.root ? std::sqrt(total) : total, params.out, params.out_scalar);
}

void clip(const ClipParams& params, int num_threads) {
  const double norm = read_scalar(params.norm, params.norm_scalar);
  double factor = params.max_norm / (norm + 1e-6);
  if (factor >= 1) return;
  double rounded;
  write_scalar(factor, &rounded, params.norm_scalar);
  factor = read_scalar(&rounded, params.norm_scalar);
  if (factor == 1) return;
  const std::vector<Block> blocks = blocks_of(params.spans);
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int team = team_size(count, num_threads);
  // From the end: what the norm has read last is still in the cache.
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t i = 0; i < count; ++i) block_scale(blocks[count - 1 - i], factor);
}

}  // namespace fastrnn::cpu
