// The product of the recurrence: a few rows (h_{t-1} of each sample, or gate gradients) with a matrix that was packed once.
//
// Panels. The matrix [k, outputs] is cut into panels of up to kMaxVectors vectors of outputs; a panel is contiguous,
// [k][vector][lane], so that the inner loop reads it as a stream. A tile keeps rows x vectors sums in registers. Panels are
// walked in pieces of k small enough for the first-level cache, each used for all rows before the next. Where a step's panels
// outgrow the second-level cache, the multiplications with one piece fetch the next: by itself it would come while only the
// first rows are multiplied, and they would wait for it.
//
// Sums are formed in an order that depends on the sizes and ProductMode alone, so two runs agree to the bit.
#pragma once

#include "factors.h"

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int kMaxVectors = 4;

// Sums that fit in the registers beside the operands: all but a quarter; without FMA a product takes a register too.
#if defined(FASTRNN_AVX512) || defined(__aarch64__)
constexpr int kTileSums = 24;
#else
constexpr int kTileSums = kHasFma ? 12 : 9;
#endif

constexpr int tile_rows(int num_vectors) {
  const int rows = kTileSums / num_vectors;
  return rows < 8 ? rows : 8;
}

// How a product is done. Bits, which a call passes as one number.
struct ProductMode {
  static constexpr int kFetchesAhead = 1, kSplitsK = 2;

  // `fetches_ahead`: the panels come from beyond the second-level cache, and the next one lies behind this one.
  // `splits_k`: the last row, where it has a tile for itself, may be summed by several chains (tile_sets). Not where a row may be the
  // last in one run and not in the next.
  FASTRNN_INLINE ProductMode(bool fetches_ahead, bool splits_k)
      : bits((fetches_ahead ? kFetchesAhead : 0) | (splits_k ? kSplitsK : 0)) {}

  int bits;
};

// What the sums begin with.
template <typename Acc>
struct Start {
  const Acc* from;  // [rows][vector][lane]; nullptr: zeros
  int64_t stride;   // from row to row; 0: the same for all

  FASTRNN_INLINE Start of_row(int64_t row) const { return {from ? from + row * stride : nullptr, stride}; }
};

// Sums of one row are too few to hide the latency of the FMA; then k is split over several sets of them.
constexpr int tile_sets(int num_vectors) { return num_vectors > 4 ? 1 : num_vectors > 2 ? 2 : 4; }

template <typename Factor>
using ElementOf = typename FactorTraits<Factor>::Element;

// The next piece on its way to the second-level cache, divided among the tiles of this one: some bytes at every step of k.
class PieceAhead {
 public:
  FASTRNN_INLINE PieceAhead(const void* piece, int64_t step_bytes)
      : from_(static_cast<const char*>(piece)), step_bytes_(step_bytes) {}
  FASTRNN_INLINE void fetch(int64_t k) const { __builtin_prefetch(from_ + k * step_bytes_, 0, 2); }
  FASTRNN_INLINE void next_tile(int64_t steps) { from_ += steps * step_bytes_; }

 private:
  const char* from_;
  int64_t step_bytes_;
};
// Panels that are near enough anyway.
struct NothingAhead {
  FASTRNN_INLINE NothingAhead(const void*, int64_t) {}
  FASTRNN_INLINE void fetch(int64_t) const {}
  FASTRNN_INLINE void next_tile(int64_t) {}
};

// out [num_rows][vectors][lanes] = start + rows [num_rows, num_k] panel
template <typename Factor>
struct ProductOperands {
  using Acc = typename AccOf<Factor>::type;

  const ElementOf<Factor>* const* rows;
  int64_t num_rows;
  const Factor* panel;
  int64_t num_k;
  Start<Acc> start;
  Acc* out;
  int64_t out_stride;  // from row to row
};

// Rows [row, row + kRows) and `num_k` steps from `k` on, which begin at `panel`.
template <int kRows, int kVectors, int kSets, typename Factor, typename Ahead>
FASTRNN_INLINE void product_tile(const ProductOperands<Factor>& p, int64_t first_row, int64_t first_k, int64_t num_k,
                                 const Factor* panel, Ahead ahead) {
  using V = Vec<typename AccOf<Factor>::type>;
  using Traits = FactorTraits<Factor>;
  const ElementOf<Factor>* rows[kRows];
  for (int row = 0; row < kRows; ++row) rows[row] = p.rows[first_row + row] + first_k;
  const Start<typename AccOf<Factor>::type> start = p.start.of_row(first_row);
  typename AccOf<Factor>::type* const out = p.out + first_row * p.out_stride;
  V sums[kSets][kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
      for (int set = 0; set < kSets; ++set) sums[set][row][v] = V(0);
      if (start.from) sums[0][row][v] = load(start.from + row * start.stride + v * V::kLanes, Whole{});
    }
  // The fewer of the two operands wait in registers while the others pass by one at a time.
  const auto add = [&](int set, int64_t k, auto steps) __attribute__((always_inline)) {
    const Factor* const column = panel + k * (kVectors * V::kLanes);
    const int64_t at = k * Traits::kSteps;
    ahead.fetch(k);
    if constexpr (kRows < kVectors) {
      Vec<Factor> factors[kRows];
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) factors[row] = Traits::broadcast(rows[row] + at, steps);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vec<Factor> weights = load(column + v * V::kLanes, Whole{});
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
          sums[set][row][v] = multiply_add(factors[row], weights, sums[set][row][v]);
      }
    } else {
      Vec<Factor> weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) weights[v] = load(column + v * V::kLanes, Whole{});
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const Vec<Factor> factor = Traits::broadcast(rows[row] + at, steps);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[set][row][v] = multiply_add(factor, weights[v], sums[set][row][v]);
      }
    }
  };
  const int64_t num_whole = num_k / Traits::kSteps;
  int64_t k = 0;
  for (; k + kSets <= num_whole; k += kSets) {
#pragma GCC unroll 4
    for (int set = 0; set < kSets; ++set) add(set, k + set, Whole{});
  }
  for (; k < num_whole; ++k) add(0, k, Whole{});
  // What lies behind a row's last element may be anything, and NaN times zero is not zero.
  if constexpr (Traits::kSteps > 1)
    if (num_k % Traits::kSteps) add(0, k, Part{1});
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V sum = sums[0][row][v];
#pragma GCC unroll 4
      for (int set = 1; set < kSets; ++set) sum += sums[set][row][v];
      store(out + row * p.out_stride + v * V::kLanes, sum, Whole{});
    }
}

template <int kVectors, int kRows, typename Factor, typename Ahead>
FASTRNN_INLINE void product_last_rows(const ProductOperands<Factor>& p, bool splits_k, int64_t first_row,
                                      int64_t first_k, int64_t num_k, const Factor* panel, Ahead ahead) {
  if constexpr (kRows > 0) {
    if (p.num_rows - first_row != kRows)
      product_last_rows<kVectors, kRows - 1>(p, splits_k, first_row, first_k, num_k, panel, ahead);
    else if (kRows == 1 && splits_k)
      product_tile<kRows, kVectors, tile_sets(kVectors)>(p, first_row, first_k, num_k, panel, ahead);
    else
      product_tile<kRows, kVectors, 1>(p, first_row, first_k, num_k, panel, ahead);
  }
}

// The piece of a panel that stays in the first-level cache while all rows use it: most of the cache, since the rows' own values
// are few and come back from the second level in time (measured: 5 to 20% faster than a third of it).
inline int64_t piece_bytes() {
  static const int64_t bytes = cache_sizes().l1 / 8 * 7;
  return bytes;
}

template <typename Ahead, int kVectors, typename Factor>
FASTRNN_INLINE void product_panel_with(ProductOperands<Factor> p, bool splits_k) {
  constexpr int kRows = tile_rows(kVectors);
  constexpr int64_t kWidth = kVectors * Vec<Factor>::kLanes, kSteps = FactorTraits<Factor>::kSteps;
  constexpr int64_t kWidthBytes = kWidth * static_cast<int64_t>(sizeof(Factor));
  const int64_t piece = piece_bytes() / kWidthBytes * kSteps;
  const int64_t num_tiles = (p.num_rows + kRows - 1) / kRows;
  const int64_t ahead_bytes = (kWidthBytes + num_tiles - 1) / num_tiles;
  int64_t k = 0;
  do {
    const int64_t count = p.num_k - k < piece ? p.num_k - k : piece;
    const Factor* const from = p.panel + k / kSteps * kWidth;
    Ahead ahead(from + count / kSteps * kWidth, ahead_bytes);
    int64_t row = 0;
    for (; row + kRows <= p.num_rows; row += kRows) {
      product_tile<kRows, kVectors, 1>(p, row, k, count, from, ahead);
      ahead.next_tile(count / kSteps);
    }
    product_last_rows<kVectors, kRows - 1>(p, splits_k, row, k, count, from, ahead);
    k += count;
    p.start = {p.out, p.out_stride};
  } while (k < p.num_k);
}

// In registers but the last two: what is read back from memory at once, in other pieces than it was written, would wait until all that
// was stored before has left the core (measured: half a microsecond where lines of another core are written).
template <int kVectors, typename Factor>
__attribute__((noinline)) void product_panel(const typename AccOf<Factor>::type* start, int64_t start_stride,
                                             const ElementOf<Factor>* const* rows, int64_t num_rows,
                                             const Factor* panel, int64_t num_k, typename AccOf<Factor>::type* out,
                                             int mode) {
  constexpr int64_t kWidth = kVectors * Vec<typename AccOf<Factor>::type>::kLanes;
  const ProductOperands<Factor> p{rows, num_rows, panel, num_k, {start, start_stride}, out, kWidth};
  // A step of k fetches one cache line: few tiles would not fetch all. And where a piece has few tiles, what fetches takes longer than
  // what it saves (measured with AVX2: 2 to 10% lost up to 10 rows, even at 16, gains at 32).
  constexpr int64_t kLines = kWidth * static_cast<int64_t>(sizeof(Factor)) / 64;
  constexpr int64_t kFewTiles = kLines - 1 > 4 ? kLines - 1 : 4;
  const bool splits_k = mode & ProductMode::kSplitsK;
  if ((mode & ProductMode::kFetchesAhead) && num_rows > kFewTiles * tile_rows(kVectors))
    product_panel_with<PieceAhead, kVectors>(p, splits_k);
  else
    product_panel_with<NothingAhead, kVectors>(p, splits_k);
}

// out [num_rows][num_vectors][lanes] = start + rows [num_rows, num_k] panel.  1 <= num_vectors <= kMaxVectors.
template <typename Factor>
FASTRNN_INLINE void product(int num_vectors, const ElementOf<Factor>* const* rows, int64_t num_rows,
                            const Factor* panel, int64_t num_k, Start<typename AccOf<Factor>::type> start,
                            typename AccOf<Factor>::type* out, ProductMode mode) {
  const auto run = [&](auto function) {
    function(start.from, start.stride, rows, num_rows, panel, num_k, out, mode.bits);
  };
  switch (num_vectors) {
    case 1: return run(product_panel<1, Factor>);
    case 2: return run(product_panel<2, Factor>);
    case 3: return run(product_panel<3, Factor>);
    case 4: return run(product_panel<4, Factor>);
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
