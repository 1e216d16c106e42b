// How a product is cut into blocks for the caches and tasks for the threads.
#pragma once

#include "gemm_kernel.h"

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
constexpr int64_t round_up(int64_t x, int64_t unit) { return ceil_div(x, unit) * unit; }
constexpr int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
constexpr int64_t most(int64_t x, int64_t y) { return x < y ? y : x; }

// The size of each of the fewest even parts of `whole` that are at most `limit`, a multiple of `unit`.
constexpr int64_t even_part(int64_t whole, int64_t limit, int64_t unit) {
  return most(unit, round_up(ceil_div(whole, most(1, ceil_div(whole, limit))), unit));
}

// Threads that are worth waking for so many multiplications.
constexpr int64_t useful_threads(int64_t products, int64_t num_threads) {
  return most(1, least(num_threads, products / kProductsPerThread));
}

// A round is one block of `depth` steps of k and `columns` columns. In a round, a task is a strip of rows times a group of
// columns: its rows of a are packed once and stay in the core's L2, while b's panels pass through L1. Runs of k are products by
// themselves, of a part of the threads each.
struct Blocks {
  int64_t depth;
  int64_t columns;
  int64_t num_strips, strip_rows;  // strips differ by a tile at most; `strip_rows`: of the largest
  int64_t num_groups;              // of columns in one round, which differ by a panel at most
  bool
      share_b;  // b's panels are packed by all threads together, before the round; else each task packs its own on the way
  bool rows_first;  // a task walks along the output's rows, not down its columns; with share_b alone
};

// `depth`, which decides the order of the sums, does not depend on num_threads. `k`: of the longest run.
template <typename Factor>
Blocks choose_blocks(int64_t m, int64_t n, int64_t k, int64_t num_runs, int64_t all_threads) {
  constexpr int64_t kRows = kTileRows, kColumns = kTileColumns<typename AccOf<Factor>::type>;
  constexpr int64_t size = sizeof(Factor) / FactorTraits<Factor>::kSteps;  // of one step of k
  constexpr int64_t kSharedParts = 16;                                     // most of packed b, in L2 sizes
  constexpr int64_t kRowsFirstDepth = 64;  // up to where writing the output is what takes the time
  const CacheSizes cache = cache_sizes();
  const int64_t num_threads = ceil_div(all_threads, num_runs);
  Blocks blocks;
  // Panels of b stream from L2, well ahead of their use, and each round passes over the output once more: so long ones
  // (measured: three times L1 is up to 10% faster than one that fits).
  blocks.depth = even_part(k, round_up(3 * cache.l1 / (kColumns * size), 8), 8);
  blocks.columns = even_part(n, round_up(kSharedParts * cache.l2 / (blocks.depth * size), kColumns), kColumns);
  blocks.rows_first = k <= kRowsFirstDepth && k <= blocks.depth;

  const int64_t strip_limit = most(kRows, cache.l2 / 2 / (blocks.depth * size) / kRows * kRows);
  const int64_t num_panels = ceil_div(least(n, blocks.columns), kColumns), num_tiles = ceil_div(m, kRows);
  int64_t num_strips = ceil_div(m, strip_limit);
  // Threads share the longer side of a small product: what they have in common, and each packs for itself, is the shorter.
  if (num_strips > 1 || m >= n || num_panels < num_threads)
    num_strips = least(round_up(num_strips, num_threads), most(num_strips, num_tiles / 2));
  blocks.num_strips = most(1, least(num_strips, num_tiles));
  blocks.strip_rows = ceil_div(num_tiles, blocks.num_strips) * kRows;
  blocks.share_b = blocks.num_strips > 1 || blocks.rows_first;
  // With few strips, columns are divided too; without sharing, finely, so that a thread that is held up costs little.
  const int64_t num_groups = blocks.share_b    ? ceil_div(num_threads, blocks.num_strips)
                             : all_threads > 1 ? num_threads * 4
                                               : 1;
  blocks.num_groups = least(num_panels, num_groups);
  return blocks;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
