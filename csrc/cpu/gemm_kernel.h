// The register tile: up to kTileRows rows times one or two vectors of columns of the output, summed over `depth`.
#pragma once

#include "factors.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Rows of a tile: with two vectors of columns, two of b and one of a, they fill the registers.
constexpr int kTileRows = FASTRNN_VECTOR_BYTES == 64 ? 14 : 6;
constexpr int kTileVectors = 2;
template <typename Acc>
constexpr int kTileColumns = kTileVectors * Vec<Acc>::kLanes;

// c = a^T b (+ c, if add) (+ bias) for tiles side by side: few steps of k would not be worth a call each.
template <typename Factor>
struct TileRun {
  using Acc = typename AccOf<Factor>::type;
  int64_t depth;    // in factors
  const Factor* a;  // [depth, kTileRows]
  const Factor* b;  // [tiles][depth, kTileColumns]
  int64_t b_panel;  // elements from one tile's b to the next one's
  int64_t tiles;
  Acc* c;
  int64_t c_row;
  bool add;
  const Acc* bias;  // a value for each column, may be nullptr
};

template <typename Factor, int kRows, int kVectors>
void multiply_tiles(const TileRun<Factor>& run) {
  using Acc = typename AccOf<Factor>::type;
  using V = Vec<Acc>;
  const int64_t depth = run.depth, c_row = run.c_row;
  for (int64_t tile = 0; tile < run.tiles; ++tile) {
    const Factor* a = run.a;
    const Factor* b = run.b + tile * run.b_panel;
    Acc* const c = run.c + tile * kTileColumns<Acc>;
    V sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch(c + r * c_row, 1);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = V(0);
    }
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns<Acc>) {
      Vec<Factor> column[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * V::kLanes, Whole{});
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec<Factor> row = a[r];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(row, column[v], sum[r][v]);
      }
    }
    if (run.bias) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const V bias = load(run.bias + tile * kTileColumns<Acc> + v * V::kLanes, Whole{});
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) sum[r][v] += bias;
      }
    }
    if (run.add) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] += load(c + r * c_row + v * V::kLanes, Whole{});
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * V::kLanes, sum[r][v], Whole{});
  }
}

template <typename Factor>
using TileFunction = void (*)(const TileRun<Factor>&);

// multiply_tiles for so many rows and vectors, each counted from 1.
template <typename Factor, int kRows = kTileRows>
TileFunction<Factor> tile_function(int64_t rows, int64_t vectors) {
  if constexpr (kRows > 1)
    if (rows < kRows) return tile_function<Factor, kRows - 1>(rows, vectors);
  return vectors == 1 ? multiply_tiles<Factor, kRows, 1> : multiply_tiles<Factor, kRows, 2>;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
