// A large product.
//
// Both operands are packed into panels that the register tile (gemm_kernel.h) reads in order. The threads pack b's panels of a
// round together, then take tasks from a counter until none is left (gemm_blocks.h says what rounds and tasks are). A value of
// the output is always summed in the same order, whichever thread does it.
#pragma once

#include "gemm_blocks.h"
#include "gemm_pack.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// out = sums (+ out), rounded to storage.
template <typename Acc, typename Out>
void add_to_row(const Acc* sums, int64_t count, Out* out, bool add) {
  for_each_vector<Acc>(count, [&](int64_t j, auto part) {
    Vec<Acc> sum = load(sums + j, part);
    if (add) sum += load(out + j, part);
    store(out + j, sum, part);
  });
}

// out = the sum of both biases, padded with zeros to `size`, whole vectors.
template <typename Acc, typename Scalar>
void sum_biases(const void* const (&biases)[2], int64_t count, int64_t size, Acc* out) {
  for (int64_t j = 0; j < size; j += Vec<Acc>::kLanes) store(out + j, Vec<Acc>(0), Whole{});
  for (const void* bias : biases) {
    if (!bias) continue;
    for_each_vector<Acc>(count, [&](int64_t j, auto part) {
      store(out + j, load(out + j, Whole{}) + load(static_cast<const Scalar*>(bias) + j, part), Whole{});
    });
  }
}

// The sum of squares of a piece of the output, in double.
template <typename Scalar>
double sum_of_squares(const Scalar* out, int64_t rows, int64_t row_step, int64_t columns) {
  using Acc = typename AccOf<Scalar>::type;
  using Wide = typename WideOf<Acc>::type;
  Wide sum = {};
  for (int64_t r = 0; r < rows; ++r) {
    for_each_vector<Acc>(columns, [&](int64_t j, auto part) __attribute__((always_inline)) {
      const Wide wide = __builtin_convertvector(load(out + r * row_step + j, part).raw, Wide);
      sum += wide * wide;
    });
  }
  return sum_of_lanes<Vec<Acc>::kLanes>(sum);
}

// What is multiplied: one a with one or two b's. Columns are counted through both, the second beginning at a whole tile.
template <typename Scalar>
struct ProductParts {
  struct Part {
    Operand<Scalar> b;
    Scalar* out;
    int64_t out_row;
    double* squares;     // may be nullptr
    int64_t begin, end;  // in the count
  };
  int64_t m, k;
  Operand<Scalar> a;
  const void* bias[2];  // of a single part; may be nullptr
  bool accumulate;
  int count = 0;
  Part parts[2] = {};

  void add(const Operand<Scalar>& b, void* out, int64_t out_row, double* squares) {
    const int64_t begin = count ? round_up(parts[count - 1].end, kTileColumns<typename AccOf<Scalar>::type>) : 0;
    parts[count++] = {b, static_cast<Scalar*>(out), out_row, squares, begin, begin + b.rows};
  }
  int64_t columns() const { return parts[count - 1].end; }
};

template <typename Scalar>
class Product final : public TeamJob {
  using Acc = typename AccOf<Scalar>::type;
  using Factor = typename FactorOf<Scalar>::type;
  static_assert(sizeof(Factor) == sizeof(Acc), "they share a workspace that is counted in Acc");
  static constexpr int64_t kColumns = kTileColumns<Acc>;
  static constexpr bool kSumsInOutput = std::is_same_v<Scalar, Acc>;

 public:
  // `sums`: [m, sums_row(columns)], for 16-bit storage and a k of several rounds: the sums stay in float until the last.
  Product(const ProductParts<Scalar>& p, const Blocks& blocks, Acc* sums)
      : p_(p), columns_(p.columns()), blocks_(blocks), sums_(sums) {}

  static int64_t sums_row(int64_t columns) { return round_up(columns, kColumns); }

  // After the work: adds the sums of squares of all that was stored where they are asked for. Their order does not depend on the
  // threads.
  void add_squares() const {
    for (int i = 0; i < p_.count; ++i) {
      if (!p_.parts[i].squares) continue;
      double sum = 0;
      for (int64_t row = 0; row < ceil_div(p_.m, kTileRows); ++row)
        for (int64_t column = p_.parts[i].begin; column < p_.parts[i].end; column += kColumns)
          sum += squares_of_tile(row, column);
      *p_.parts[i].squares += sum;
    }
  }

  void prepare(int num_threads) override {
    num_threads_ = num_threads;
    barrier_.set_size(num_threads);
    const bool has_bias = p_.bias[0] || p_.bias[1];
    const int64_t bias_size = has_bias ? round_up(columns_, kColumns) : 0;
    const int64_t b_panel = panel_size<Factor, kColumns>(blocks_.depth);
    const int64_t shared_size = blocks_.share_b ? ceil_div(blocks_.columns, kColumns) * b_panel : 0;
    a_size_ = ceil_div(blocks_.strip_rows, kTileRows) * panel_size<Factor, kTileRows>(blocks_.depth);
    own_b_size_ = blocks_.share_b ? 0 : b_panel;
    thread_size_ = a_size_ + own_b_size_ + kTileRows * kColumns;
    const int64_t size = bias_size + shared_size + num_threads * thread_size_;
    const bool takes_squares = p_.parts[0].squares || (p_.count > 1 && p_.parts[1].squares);
    const int64_t num_tiles = ceil_div(p_.m, kTileRows) * num_column_tiles();
    const int64_t squares_size = takes_squares ? round_up(num_tiles, 8) : 0;  // whole cache lines
    workspace_.allocate(squares_size * static_cast<int64_t>(sizeof(double)) + size * static_cast<int64_t>(sizeof(Acc)));
    squares_ = workspace_.as<double>();
    Acc* const memory = reinterpret_cast<Acc*>(squares_ + squares_size);
    bias_ = has_bias ? memory : nullptr;
    shared_b_ = reinterpret_cast<Factor*>(memory + bias_size);
    thread_memory_ = shared_b_ + shared_size;
    if (has_bias) sum_biases<Acc, Scalar>(p_.bias, columns_, bias_size, bias_);
  }

  void work(int thread) override {
    const int64_t num_tasks = blocks_.num_strips * blocks_.num_groups;
    Factor* const memory = thread_memory_ + thread * thread_size_;
    for (int64_t column = 0; column < columns_; column += blocks_.columns) {
      for (int64_t k = 0; k == 0 || k < p_.k; k += blocks_.depth) {
        const Round round{k, least(blocks_.depth, p_.k - k), column, least(columns_, column + blocks_.columns)};
        const bool first = column == 0 && k == 0;
        if (!first) barrier_.wait();  // for the last round's tasks
        if (!first || blocks_.share_b) {
          if (blocks_.share_b) pack_shared(round, thread);
          if (thread == 0) next_task_.store(0, std::memory_order_relaxed);
          barrier_.wait();
        }
        int64_t packed_strip = -1;
        for (int64_t task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
          const int64_t strip = task / blocks_.num_groups;
          run_task(round, strip, task % blocks_.num_groups, strip != packed_strip, memory);
          packed_strip = strip;
        }
      }
    }
  }

 private:
  struct Round {
    int64_t k, depth, column, last_column;
  };

  int64_t num_column_tiles() const { return ceil_div(columns_, kColumns); }
  double& squares_of_tile(int64_t row_tile, int64_t column) const {
    return squares_[row_tile * num_column_tiles() + column / kColumns];
  }

  // Calls function(part, first, last) for the parts of columns [first, last), which begin at a tile.
  template <typename Function>
  void for_each_part(int64_t first, int64_t last, Function function) const {
    for (int i = 0; i < p_.count; ++i) {
      const auto& part = p_.parts[i];
      const int64_t begin = most(first, part.begin), end = least(last, part.end);
      if (begin < end) function(part, begin, end);
    }
  }

  // Columns of b, from the first of a tile on.
  void pack_b(const Round& round, int64_t first, int64_t last, Factor* out) const {
    for_each_part(first, last, [&](const auto& part, int64_t begin, int64_t end) {
      pack<Factor, kColumns>(part.b, begin - part.begin, end - part.begin, round.k, round.depth,
                             out + (begin - first) / kColumns * panel_size<Factor, kColumns>(round.depth));
    });
  }

  void pack_shared(const Round& round, int64_t thread) {
    const int64_t num_panels = ceil_div(round.last_column - round.column, kColumns);
    const int64_t first = num_panels * thread / num_threads_, last = num_panels * (thread + 1) / num_threads_;
    pack_b(round, round.column + first * kColumns, least(round.last_column, round.column + last * kColumns),
           shared_b_ + first * panel_size<Factor, kColumns>(round.depth));
  }

  void run_task(const Round& round, int64_t strip, int64_t group, bool pack_a, Factor* memory) {
    const auto [first_tile, last_tile] = share_of(ceil_div(p_.m, kTileRows), blocks_.num_strips, strip);
    const int64_t first_row = first_tile * kTileRows, last_row = least(p_.m, last_tile * kTileRows);
    const int64_t num_panels = ceil_div(round.last_column - round.column, kColumns);
    const auto [first_panel, last_panel] = share_of(num_panels, blocks_.num_groups, group);
    const int64_t first = round.column + first_panel * kColumns;
    const int64_t last = least(round.last_column, round.column + last_panel * kColumns);
    if (pack_a) pack<Factor, kTileRows>(p_.a, first_row, last_row, round.k, round.depth, memory);
    Factor* const own_b = memory + a_size_;
    Acc* const tile = reinterpret_cast<Acc*>(own_b + own_b_size_);
    const auto multiply_rows = [&](int64_t row, int64_t column, int64_t last_column, const Factor* b) {
      const Factor* const a = memory + (row - first_row) / kTileRows * panel_size<Factor, kTileRows>(round.depth);
      for_each_part(column, last_column, [&](const auto& part, int64_t begin, int64_t end) {
        multiply(round, part, row, least(kTileRows, last_row - row), begin, end, a,
                 b + (begin - column) / kColumns * panel_size<Factor, kColumns>(round.depth), tile);
      });
    };
    if (blocks_.rows_first) {
      for (int64_t row = first_row; row < last_row; row += kTileRows)
        multiply_rows(row, first, last, shared_panel(round, first));
      return;
    }
    for (int64_t column = first; column < last; column += kColumns) {
      const int64_t last_column = least(last, column + kColumns);
      if (!blocks_.share_b) pack_b(round, column, last_column, own_b);
      const Factor* const b = blocks_.share_b ? shared_panel(round, column) : own_b;
      for (int64_t row = first_row; row < last_row; row += kTileRows) multiply_rows(row, column, last_column, b);
    }
  }

  const Factor* shared_panel(const Round& round, int64_t column) const {
    return shared_b_ + (column - round.column) / kColumns * panel_size<Factor, kColumns>(round.depth);
  }

  // A round's part of `rows` rows, up to kTileRows, and columns [first, last) of one b: whole tiles, but for its last columns.
  // Tiles that are whole go to where the sums are kept; others, and those that must be rounded, are finished in `tile`.
  void multiply(const Round& round, const typename ProductParts<Scalar>::Part& part, int64_t row, int64_t rows,
                int64_t first, int64_t last, const Factor* a, const Factor* b, Acc* tile) const {
    const bool first_round = round.k == 0, last_round = round.k + round.depth == p_.k;
    const int64_t b_panel = panel_size<Factor, kColumns>(round.depth), depth = num_factors<Factor>(round.depth);
    Scalar* const out = part.out + row * part.out_row - part.begin;  // indexed by the count of columns
    const Acc* const bias = bias_ && first_round ? bias_ : nullptr;
    int64_t column = first;
    if constexpr (kSumsInOutput) {
      const int64_t tiles = (last - first) / kColumns;
      if (tiles > 0)
        tile_function<Factor>(rows, kTileVectors)({depth, a, b, b_panel, tiles, out + first, part.out_row,
                                                   p_.accumulate || !first_round, bias ? bias + first : nullptr});
      column += tiles * kColumns;
      b += tiles * b_panel;
    }
    for (; column < last; column += kColumns, b += b_panel) {
      const int64_t columns = least(kColumns, last - column);
      Acc* const own = sums_ ? sums_ + row * sums_row(columns_) + column : tile;
      const int64_t own_row = sums_ ? sums_row(columns_) : kColumns;
      tile_function<Factor>(rows, ceil_div(columns, Vec<Acc>::kLanes))(
          {depth, a, b, 0, 1, own, own_row, sums_ && !first_round, bias ? bias + column : nullptr});
      if (sums_ && !last_round) continue;
      const bool add = p_.accumulate || (!sums_ && !first_round);
      for (int64_t r = 0; r < rows; ++r) add_to_row(own + r * own_row, columns, out + r * part.out_row + column, add);
    }
    if (!part.squares || !last_round) return;
    for (column = first; column < last; column += kColumns)  // while the tiles are in the cache
      squares_of_tile(row / kTileRows, column) =
          FASTRNN_ISA::sum_of_squares(out + column, rows, part.out_row, least(kColumns, last - column));
  }

  const ProductParts<Scalar> p_;
  const int64_t columns_;
  const Blocks blocks_;
  Acc* const sums_;
  int64_t num_threads_ = 1;
  Buffer workspace_;
  double* squares_ = nullptr;  // [row tiles, column tiles]: sums of squares, if they are asked for
  Acc* bias_ = nullptr;        // [columns] as accumulators, padded to whole tiles; nullptr: none
  Factor* shared_b_ = nullptr;
  Factor* thread_memory_ = nullptr;  // for each thread: a strip of a, a panel of b, a tile
  int64_t thread_size_ = 0, a_size_ = 0, own_b_size_ = 0;
  alignas(64) std::atomic<int64_t> next_task_{0};
  Barrier barrier_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
