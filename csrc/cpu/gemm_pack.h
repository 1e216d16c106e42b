// Packing: an operand becomes panels of kWidth rows of factors (factors.h), [depth, kWidth] each: what the register tile reads in
// order. "Rows" are those of a; for b they are its columns.
#pragma once

#include "factors.h"
#include "transpose.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// One operand: element (row, k) is at row * row_step + k * k_step; one of the steps is 1. With `lines`, at lines[k] + first + row.
template <typename Scalar>
struct Operand {
  const Scalar* data;
  int64_t rows, row_step, k_step;
  const void* const* lines = nullptr;  // [k]  for all rows
  int64_t first = 0;

  static Operand of_lines(const void* const* lines, int64_t first, int64_t rows) {
    return {nullptr, rows, 1, 0, lines, first};
  }
  FASTRNN_INLINE const Scalar* at(int64_t row, int64_t k) const {
    return lines ? static_cast<const Scalar*>(lines[k]) + first + row : data + row * row_step + k * k_step;
  }
  // Rows row ... row + num_rows alone.
  Operand slice(int64_t row, int64_t num_rows) const {
    Operand part = *this;
    part.rows = num_rows;
    if (lines)
      part.first += row;
    else
      part.data += row * row_step;
    return part;
  }
};

// Elements from one panel to the next. The gap takes what a panel's last vector writes too much, and keeps panels of a depth
// that is a power of two from falling on the same lines of the cache.
template <typename Factor, int kWidth>
constexpr int64_t panel_size(int64_t depth) {
  constexpr int64_t line = 64 / sizeof(Factor);
  return (num_factors<Factor>(depth) * kWidth + line - 1) / line * line + line;
}

// Calls function(index, lanes) for each vector of `count` elements: Whole{}, and Part for the last where it is one. An element
// is a value, or a step of k: a factor has one or two.
template <typename Factor, typename Function>
FASTRNN_INLINE void for_each_vector(int64_t count, Function function) {
  constexpr int lanes = Vec<Factor>::kLanes * FactorTraits<Factor>::kSteps;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) function(i, Whole{});
  if (i < count) function(i, Part{static_cast<int>(count - i)});
}

// A panel of which k is adjacent in memory. Rows beyond `count` become copies of the last.
template <typename Factor, int kWidth, typename Scalar>
void pack_rows(const Scalar* source, int64_t row_step, int count, int64_t depth, Factor* panel) {
  using Traits = FactorTraits<Factor>;
  constexpr int lanes = Vec<Factor>::kLanes;
  for_each_vector<Factor>(depth, [&](int64_t k, auto part) __attribute__((always_inline)) {
    // The last rows go first: what they write past the panel's width is the next k's first rows, or the gap.
    for (int first = (kWidth - 1) / lanes * lanes; first >= 0; first -= lanes) {
      Vec<Factor> square[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        square[i] = Traits::along_k(source + (first + i < count ? first + i : count - 1) * row_step + k, part);
      transpose<Factor>(square);
      int factors = lanes;
      if constexpr (std::is_same_v<decltype(part), Part>) factors = static_cast<int>(num_factors<Factor>(part.lanes));
#pragma GCC unroll 16
      for (int i = 0; i < factors; ++i) store(panel + (k / Traits::kSteps + i) * kWidth + first, square[i], Whole{});
    }
  });
}

// Steps of k, whole factors, whose cache lines are held while all panels take their part of them.
constexpr int64_t kSlab = 8;

// Some steps of a panel of which rows are adjacent in memory: step k is at lines[k] + row. Rows beyond `count`, those that exist,
// become 0.
template <typename Factor, int kWidth, typename Scalar>
void pack_columns(const Scalar* const (&lines)[kSlab], int64_t row, int64_t count, int64_t depth, Factor* panel) {
  using Traits = FactorTraits<Factor>;
  using Acc = typename AccOf<Factor>::type;
  constexpr int lanes = Vec<Factor>::kLanes, vectors = (kWidth + lanes - 1) / lanes;
  for (int64_t k = 0; k < depth; k += Traits::kSteps, panel += kWidth) {
    const Scalar* const from = lines[k] + row;
    const Scalar* const next = k + 1 < depth ? lines[k + 1] + row : nullptr;
    const auto after = [next](int64_t i) { return next ? next + i : nullptr; };
    if (count >= vectors * lanes) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v)
        store(panel + v * lanes, Traits::across_k(from + v * lanes, after(v * lanes), Whole{}), Whole{});
    } else {
      for (int v = 0; v < vectors; ++v) store(panel + v * lanes, Vec<Factor>{}, Whole{});
      for_each_vector<Acc>(
          count, [&](int64_t i, auto part) { store(panel + i, Traits::across_k(from + i, after(i), part), Whole{}); });
    }
  }
}

// Rows [first, last) at depth [k, k + depth) into consecutive panels. `out` has panel_size for each.
template <typename Factor, int kWidth, typename Scalar>
void pack(const Operand<Scalar>& x, int64_t first, int64_t last, int64_t k, int64_t depth, Factor* out) {
  const int64_t size = panel_size<Factor, kWidth>(depth);
  if (x.k_step == 1) {
    for (int64_t row = first; row < last; row += kWidth, out += size)
      pack_rows<Factor, kWidth>(x.at(row, k), x.row_step, static_cast<int>(last - row < kWidth ? last - row : kWidth),
                                depth, out);
    return;
  }
  for (int64_t slab = 0, steps; slab < depth; slab += steps) {
    steps = depth - slab < kSlab ? depth - slab : kSlab;
    const Scalar* lines[kSlab];
    for (int64_t i = 0; i < steps; ++i) lines[i] = x.at(0, k + slab + i);
    Factor* panel = out + slab / FactorTraits<Factor>::kSteps * kWidth;
    // What a panel's last step writes too much is its first of the next slab, which comes later, or the gap.
    for (int64_t row = first; row < last; row += kWidth, panel += size)
      pack_columns<Factor, kWidth>(lines, row, x.rows - row, steps, panel);
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
