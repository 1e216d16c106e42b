// A large product.
//
// Both operands are packed into panels that the register tile (gemm_kernel.h) reads in order. A round is two phases: b's panels are
// packed, then strips of a are packed and multiplied (gemm_blocks.h says what rounds, strips and tasks are). k may be divided into
// runs: each goes through its rounds by itself, and their sums are added in the end. A thread takes tasks of its own run first, then of
// others. A value of the output is always summed in the same order, whichever thread does it.
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
  int num_runs = 1;
  const int64_t* run_ends = nullptr;  // [num_runs], if there are several
  int count = 0;
  Part parts[2] = {};

  void add(const Operand<Scalar>& b, void* out, int64_t out_row, double* squares) {
    const int64_t begin = count ? round_up(parts[count - 1].end, kTileColumns<typename AccOf<Scalar>::type>) : 0;
    parts[count++] = {b, static_cast<Scalar*>(out), out_row, squares, begin, begin + b.rows};
  }
  int64_t columns() const { return parts[count - 1].end; }
  int64_t run_end(int run) const { return num_runs > 1 ? run_ends[run] : k; }
  int64_t longest_run() const {
    int64_t longest = 0;
    for (int run = 0; run < num_runs; ++run) longest = most(longest, run_end(run) - (run ? run_end(run - 1) : 0));
    return longest;
  }
  // Rows row ... row + num_rows alone.
  ProductParts slice(int64_t row, int64_t num_rows) const {
    ProductParts part = *this;
    part.m = num_rows;
    part.a = a.slice(row, num_rows);
    for (int i = 0; i < count; ++i) part.parts[i].out += row * parts[i].out_row;
    return part;
  }
};

template <typename Scalar>
class Product final : public TeamJob {
  using Acc = typename AccOf<Scalar>::type;
  using Factor = typename FactorOf<Scalar>::type;
  using Part = typename ProductParts<Scalar>::Part;
  static_assert(sizeof(Factor) == sizeof(Acc), "they share a workspace that is counted in Acc");
  static constexpr int64_t kColumns = kTileColumns<Acc>;
  static constexpr bool kSumsInOutput = std::is_same_v<Scalar, Acc>;

 public:
  // What is 16 bits wide and has several rounds or runs is slice by slice of at most so many rows, to bound the memory of its sums.
  static int64_t rows_of_slice(int64_t columns) { return most(512, (int64_t{2} << 20) / sums_row(columns)); }

  Product(const ProductParts<Scalar>& p, const Blocks& blocks) : p_(p), columns_(p.columns()), blocks_(blocks) {}

  // After the work: adds the sums of squares of all that was stored where they are asked for. Their order does not depend on the
  // threads.
  void add_squares() const {
    for (int i = 0; i < p_.count; ++i) {
      if (!p_.parts[i].squares) continue;
      double sum = 0;
      for (int64_t row = 0; row < num_row_tiles(); ++row)
        for (int64_t column = p_.parts[i].begin; column < p_.parts[i].end; column += kColumns)
          sum += squares_of_tile(row, column);
      *p_.parts[i].squares += sum;
    }
  }

  void prepare(int num_threads) override {
    num_threads_ = num_threads;
    const bool has_bias = p_.bias[0] || p_.bias[1];
    const int64_t bias_size = has_bias ? round_up(columns_, kColumns) : 0;
    const int64_t b_panel = panel_size<Factor, kColumns>(blocks_.depth);
    const int64_t shared_size = blocks_.share_b ? ceil_div(blocks_.columns, kColumns) * b_panel : 0;
    const int64_t sums_size = p_.m * sums_row(columns_);
    a_size_ = ceil_div(blocks_.strip_rows, kTileRows) * panel_size<Factor, kTileRows>(blocks_.depth);
    own_b_size_ = blocks_.share_b ? 0 : b_panel;
    thread_size_ = a_size_ + own_b_size_ + kTileRows * kColumns + kApartBytes / static_cast<int64_t>(sizeof(Acc));
    int64_t size = bias_size + num_threads * thread_size_;
    for (int run = 0; run < p_.num_runs; ++run) size += shared_size + (has_sums(run) ? sums_size : 0);
    const bool takes_squares = p_.parts[0].squares || (p_.count > 1 && p_.parts[1].squares);
    const int64_t squares_size =
        takes_squares ? round_up(num_row_tiles() * num_column_tiles(), 8) : 0;  // whole cache lines
    workspace_.allocate(squares_size * static_cast<int64_t>(sizeof(double)) + size * static_cast<int64_t>(sizeof(Acc)));
    squares_ = workspace_.as<double>();
    Acc* memory = reinterpret_cast<Acc*>(squares_ + squares_size);
    const auto take = [&memory](int64_t count) {
      memory += count;
      return memory - count;
    };
    bias_ = has_bias ? take(bias_size) : nullptr;
    if (has_bias) sum_biases<Acc, Scalar>(p_.bias, columns_, bias_size, bias_);
    thread_memory_ = reinterpret_cast<Factor*>(take(num_threads * thread_size_));
    runs_.reset(new Run[p_.num_runs]);
    const int64_t num_tasks = blocks_.num_strips * blocks_.num_groups;
    for (int i = 0; i < p_.num_runs; ++i) {
      Run& run = runs_[i];
      run.first = i ? p_.run_end(i - 1) : 0;
      run.depth = p_.run_end(i) - run.first;
      run.shared_b = reinterpret_cast<Factor*>(take(shared_size));
      run.sums = has_sums(i) ? take(sums_size) : nullptr;
      run.phases.reset(num_rounds(run) * (blocks_.share_b ? 2 : 1), blocks_.share_b ? num_threads : num_tasks,
                       num_tasks);
    }
  }

  void work(int thread) override {
    Own own{thread_memory_ + thread * thread_size_};
    const int first = thread * p_.num_runs / num_threads_;
    Patience patience;
    for (bool ended = false; !ended;) {
      ended = true;
      for (int i = 0; i < p_.num_runs; ++i) {
        Run& run = runs_[(first + i) % p_.num_runs];
        const Phases::Task task = run.phases.take();
        if (task.index >= 0) {
          run_task(run, task, own);
          run.phases.done(task);
          patience = {};
          ended = false;
          break;
        }
        ended = ended && run.phases.ended(task);
      }
      if (!ended) patience.wait();
    }
    if (p_.num_runs > 1)
      for (int64_t row; (row = next_row_.fetch_add(1, std::memory_order_relaxed)) < num_row_tiles();) add_runs(row);
  }

 private:
  struct Run {
    int64_t first, depth;  // of k
    Factor* shared_b;
    Acc* sums;  // [m, sums_row], nullptr: they are kept in the output
    Phases phases;
  };
  struct Round {
    int64_t k, depth, column, last_column;
    bool first, last;  // of its columns
  };
  // A thread's memory: a strip of a, a panel of b, a tile; and whose strip it is.
  struct Own {
    Factor* memory;
    const Run* run = nullptr;
    int64_t phase = 0, strip = 0;
  };

  static int64_t sums_row(int64_t columns) { return round_up(columns, kColumns); }
  // A run's sums have memory of their own: but for the first, whose are in the output, or in a tile that is rounded at once.
  bool has_sums(int run) const { return run > 0 || (!kSumsInOutput && (p_.num_runs > 1 || blocks_.depth < p_.k)); }
  int64_t num_column_tiles() const { return ceil_div(columns_, kColumns); }
  int64_t num_row_tiles() const { return ceil_div(p_.m, kTileRows); }
  double& squares_of_tile(int64_t row_tile, int64_t column) const {
    return squares_[row_tile * num_column_tiles() + column / kColumns];
  }

  // Of one block of columns, at least one, which stores zeros.
  int64_t rounds_of_columns(const Run& run) const { return most(1, ceil_div(run.depth, blocks_.depth)); }
  int64_t num_rounds(const Run& run) const { return ceil_div(columns_, blocks_.columns) * rounds_of_columns(run); }
  Round round_of(const Run& run, int64_t index) const {
    const int64_t rounds = rounds_of_columns(run), column = index / rounds * blocks_.columns;
    const int64_t k = index % rounds * blocks_.depth;
    return {run.first + k, least(blocks_.depth, run.depth - k), column, least(columns_, column + blocks_.columns),
            k == 0,        index % rounds == rounds - 1};
  }

  // Calls function(part, first, last) for the parts of columns [first, last), which begin at a tile.
  template <typename Function>
  void for_each_part(int64_t first, int64_t last, Function function) const {
    for (int i = 0; i < p_.count; ++i) {
      const Part& part = p_.parts[i];
      const int64_t begin = most(first, part.begin), end = least(last, part.end);
      if (begin < end) function(part, begin, end);
    }
  }

  void run_task(const Run& run, const Phases::Task& task, Own& own) const {
    const Round round = round_of(run, blocks_.share_b ? task.phase / 2 : task.phase);
    if (blocks_.share_b && task.phase % 2 == 0) return pack_shared(run, round, task.index);
    const int64_t strip = task.index / blocks_.num_groups;
    const bool packed = own.run == &run && own.phase == task.phase && own.strip == strip;
    own.run = &run, own.phase = task.phase, own.strip = strip;
    multiply_strip(run, round, strip, task.index % blocks_.num_groups, !packed, own.memory);
  }

  // Columns of b, from the first of a tile on.
  void pack_b(const Round& round, int64_t first, int64_t last, Factor* out) const {
    for_each_part(first, last, [&](const Part& part, int64_t begin, int64_t end) {
      pack<Factor, kColumns>(part.b, begin - part.begin, end - part.begin, round.k, round.depth,
                             out + (begin - first) / kColumns * panel_size<Factor, kColumns>(round.depth));
    });
  }

  void pack_shared(const Run& run, const Round& round, int64_t task) const {
    const auto [first, last] = share_of(ceil_div(round.last_column - round.column, kColumns), num_threads_, task);
    pack_b(round, round.column + first * kColumns, least(round.last_column, round.column + last * kColumns),
           run.shared_b + first * panel_size<Factor, kColumns>(round.depth));
  }

  void multiply_strip(const Run& run, const Round& round, int64_t strip, int64_t group, bool pack_a,
                      Factor* memory) const {
    const auto [first_tile, last_tile] = share_of(num_row_tiles(), blocks_.num_strips, strip);
    const int64_t first_row = first_tile * kTileRows, last_row = least(p_.m, last_tile * kTileRows);
    const int64_t num_panels = ceil_div(round.last_column - round.column, kColumns);
    const auto [first_panel, last_panel] = share_of(num_panels, blocks_.num_groups, group);
    const int64_t first = round.column + first_panel * kColumns;
    const int64_t last = least(round.last_column, round.column + last_panel * kColumns);
    if (pack_a) pack<Factor, kTileRows>(p_.a, first_row, last_row, round.k, round.depth, memory);
    Factor* const own_b = memory + a_size_;
    Acc* const tile = reinterpret_cast<Acc*>(own_b + own_b_size_);
    const auto shared_panel = [&](int64_t column) {
      return run.shared_b + (column - round.column) / kColumns * panel_size<Factor, kColumns>(round.depth);
    };
    const auto multiply_rows = [&](int64_t row, int64_t column, int64_t last_column, const Factor* b) {
      const Factor* const a = memory + (row - first_row) / kTileRows * panel_size<Factor, kTileRows>(round.depth);
      for_each_part(column, last_column, [&](const Part& part, int64_t begin, int64_t end) {
        multiply(run, round, part, row, least(kTileRows, last_row - row), begin, end, a,
                 b + (begin - column) / kColumns * panel_size<Factor, kColumns>(round.depth), tile);
      });
    };
    if (blocks_.rows_first) {
      for (int64_t row = first_row; row < last_row; row += kTileRows)
        multiply_rows(row, first, last, shared_panel(first));
      return;
    }
    for (int64_t column = first; column < last; column += kColumns) {
      const int64_t last_column = least(last, column + kColumns);
      if (!blocks_.share_b) pack_b(round, column, last_column, own_b);
      const Factor* const b = blocks_.share_b ? shared_panel(column) : own_b;
      for (int64_t row = first_row; row < last_row; row += kTileRows) multiply_rows(row, column, last_column, b);
    }
  }

  // A round's part of `rows` rows, up to kTileRows, and columns [first, last) of one b: whole tiles, but for its last columns.
  // Tiles that are whole go to where the sums are kept; others, and those that must be rounded, are finished in `tile`.
  void multiply(const Run& run, const Round& round, const Part& part, int64_t row, int64_t rows, int64_t first,
                int64_t last, const Factor* a, const Factor* b, Acc* tile) const {
    const int64_t b_panel = panel_size<Factor, kColumns>(round.depth), depth = num_factors<Factor>(round.depth);
    const Acc* const bias = bias_ && round.first && &run == &runs_[0] ? bias_ : nullptr;
    Acc* const sums = run.sums ? run.sums + row * sums_row(columns_) : nullptr;
    const auto to_sums = [&](int64_t column, int64_t tiles, int64_t vectors) {
      tile_function<Factor>(rows, vectors)({depth, a, b, b_panel, tiles, sums + column, sums_row(columns_),
                                            !round.first, bias ? bias + column : nullptr});
    };
    Scalar* const out = output(part, row);
    int64_t column = first;
    const int64_t tiles = (last - first) / kColumns;
    if constexpr (kSumsInOutput) {
      if (tiles > 0) {
        if (sums)
          to_sums(column, tiles, kTileVectors);
        else
          tile_function<Factor>(rows, kTileVectors)({depth, a, b, b_panel, tiles, out + first, part.out_row,
                                                     p_.accumulate || !round.first, bias ? bias + first : nullptr});
      }
      column += tiles * kColumns;
      b += tiles * b_panel;
    }
    for (; column < last; column += kColumns, b += b_panel) {
      const int64_t columns = least(kColumns, last - column), vectors = ceil_div(columns, Vec<Acc>::kLanes);
      if (sums)
        to_sums(column, 1, vectors);
      else
        tile_function<Factor>(rows,
                              vectors)({depth, a, b, 0, 1, tile, kColumns, false, bias ? bias + column : nullptr});
      if (sums && (p_.num_runs > 1 || !round.last)) continue;
      const bool add = p_.accumulate || (!sums && !round.first);
      const Acc* const done = sums ? sums + column : tile;
      for (int64_t r = 0; r < rows; ++r)
        add_to_row(done + r * (sums ? sums_row(columns_) : kColumns), columns, out + r * part.out_row + column, add);
    }
    if (round.last && p_.num_runs == 1) take_squares(part, row, rows, first, last);
  }

  // Row `row` of a part's output, indexed by the count of columns.
  static Scalar* output(const Part& part, int64_t row) { return part.out + row * part.out_row - part.begin; }

  // While the tiles are in the cache.
  void take_squares(const Part& part, int64_t row, int64_t rows, int64_t first, int64_t last) const {
    if (!part.squares) return;
    for (int64_t column = first; column < last; column += kColumns)
      squares_of_tile(row / kTileRows, column) =
          FASTRNN_ISA::sum_of_squares(output(part, row) + column, rows, part.out_row, least(kColumns, last - column));
  }

  // The output of a row of tiles from the sums of all runs.
  void add_runs(int64_t row_tile) const {
    const int64_t row = row_tile * kTileRows, rows = least(kTileRows, p_.m - row);
    for_each_part(0, columns_, [&](const Part& part, int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r) {
        Scalar* const out = output(part, row + r);
        for_each_vector<Acc>(end - begin, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
          const int64_t at = (row + r) * sums_row(columns_) + begin + j;
          Vec<Acc> sum = runs_[0].sums ? load(runs_[0].sums + at, Whole{}) : load(out + begin + j, lanes);
          for (int run = 1; run < p_.num_runs; ++run) sum += load(runs_[run].sums + at, Whole{});
          store(out + begin + j, sum, lanes);
        });
      }
      take_squares(part, row, rows, begin, end);
    });
  }

  const ProductParts<Scalar> p_;
  const int64_t columns_;
  const Blocks blocks_;
  int64_t num_threads_ = 1;
  Buffer workspace_;
  double* squares_ = nullptr;  // [row tiles, column tiles]: sums of squares, if they are asked for
  Acc* bias_ = nullptr;        // [columns] as accumulators, padded to whole tiles; nullptr: none
  Factor* thread_memory_ = nullptr;
  int64_t thread_size_ = 0, a_size_ = 0, own_b_size_ = 0;
  std::unique_ptr<Run[]> runs_;
  alignas(64) std::atomic<int64_t> next_row_{0};  // of tiles, to add_runs
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
