// How the blocks that hold the weights of one direction together pass the operand round, for one slice of the batch.
//
// All teams have the same face. The operand of a turn is X, [kN][K padded][kTileBatch] in shared memory. A turn is
//   x = team.wait(turn)            the only place that blocks: X is complete, and what was read before may be overwritten
//   team.publish(turn + 1, ...)    by the warps that own units: their rows of the next X, in every block of the team
//   team.published()
// and `team.sum` adds a number per sample over all units of the team. What makes overwriting safe in all three: a block publishes
// for turn t + 1 after it has read turn t, and nobody publishes for turn t + 2 before it has all of turn t + 1.
//
//   BlockTeam    one block: X in two buffers of shared memory by parity of the turn, __syncthreads
//   ClusterTeam  a cluster (cluster.cuh): each row is pushed into the shared memory of every peer, whose barrier counts the bytes
//   GridTeam     any blocks: rows go through L2. `persistent`: each block raises the team's counter after its rows; else the
//                boundary between two launches is the barrier, and a launch runs one turn.
//
// TwoLevelTeam, of backward alone, is a grid of clusters (two_level.cuh).
#pragma once

#include "../cells.h"
#include "operand.cuh"

namespace fastrnn::cuda {

// Which part of the layer a block has: consecutive blocks are a team. The slices in order, so that the longest start first.
struct Place {
  int rank, slice, direction, team;
  FASTRNN_DEVICE static Place of_block(const Tiling& tiling, int num_directions) {
    const int block = blockIdx.x, team = tiling.first_team + block / tiling.team_size;
    return {block % tiling.team_size, team / num_directions, team % num_directions, team};
  }
};

// The steps of a team in a launch, in processing order, backward's from the last (then called turns).
struct Range {
  int first, last;  // of the stage: [first, last); of the whole sequence, where it is no stack
  int begin, end;   // of the launch; of a stack there may be none
  FASTRNN_DEVICE Range(int steps, int more) : first(0), last(steps), begin(0), end(steps + more) {}
  // `chunks_behind`: of a stack, how far this layer is behind the one that is ahead of all. `more`: turns beyond the last.
  FASTRNN_DEVICE Range(const Shape& shape, const Tiling& tiling, int chunks_behind, int more) {
    const int steps = static_cast<int>(shape.steps), chunk = static_cast<int>(shape.chunk);
    first = chunk > 0 ? (static_cast<int>(shape.stage) - chunks_behind) * chunk : 0;
    last = chunk > 0 && first + chunk < steps ? first + chunk : steps;
    begin = first + tiling.begin;
    end = first + tiling.end < last + more ? first + tiling.end : last + more;
    if (chunk > 0 && (first < 0 || first >= steps)) end = begin;
  }
};

// Cuts named arrays out of shared memory; on the host, with no buffer, it only counts bytes.
class SharedArrays {
 public:
  FASTRNN_HD explicit SharedArrays(unsigned char* buffer) : buffer_(buffer) {}

  template <typename T>
  FASTRNN_HD T* take(int64_t count) {
    T* array = buffer_ ? reinterpret_cast<T*>(buffer_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 127) / 128 * 128;
    return array;
  }
  FASTRNN_HD size_t used() const { return used_; }

 private:
  unsigned char* buffer_;
  size_t used_ = 0;
};

// Counters in L2, by which blocks that run at the same time tell each other that they are ready.
constexpr int kCounterWords = kCounterBytes / sizeof(unsigned);
// The barrier makes all stores of the block precede thread 0's release.
FASTRNN_DEVICE void raise(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0) red_release_add(counter, 1);
}
// Until each of `blocks` has raised the counter `rounds` times.
FASTRNN_DEVICE void wait_for(const unsigned* counter, int rounds, int blocks, const char* what) {
  if (threadIdx.x == 0) {
    const unsigned all = static_cast<unsigned>(rounds) * static_cast<unsigned>(blocks);
    Spin spin(what, rounds);
    // as a difference, so that it may wrap around
    while (static_cast<int>(load_acquire(counter) - all) < 0) spin.pause();
  }
  __syncthreads();
}

template <typename Op, int kN>
class TeamBase {
 public:
  using Element = typename Op::Element;
  static constexpr int kSamples = kN * kTileBatch;
  static constexpr int kMinArch = cuda::kMinArch;
  static constexpr bool kRunsStages = true;  // of a stack

  // Of an operand of K rows; the last chunk is filled up with zeros.
  FASTRNN_HD static int num_chunks(int64_t num_rows) {
    return static_cast<int>((num_rows + Op::kChunk - 1) / Op::kChunk);
  }
  FASTRNN_HD static int padded_rows(int64_t num_rows) { return num_chunks(num_rows) * Op::kChunk; }
  FASTRNN_DEVICE int rows() const { return rows_; }

  // The sum over a warp's units of each of its samples, [kSamples].
  FASTRNN_DEVICE static void store_sums_of_warp(double (&value)[kN][2], double* sums) {
    const Lane lane = Lane::of_thread();
    unrolled<kN, 2>([&](int n, int j) {
      value[n][j] = sum_over_groups(value[n][j]);
      if (lane.group == 0) sums[n * kTileBatch + 2 * lane.quad + j] = value[n][j];
    });
  }

 protected:
  struct alignas(2 * sizeof(Element)) Pair {
    Element value[2];
  };

  // Over the lanes that have the same samples; in all of them.
  FASTRNN_DEVICE static double sum_over_groups(double value) {
    FASTRNN_UNROLL
    for (int mask = 4; mask < kWarp; mask *= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
    return value;
  }

  FASTRNN_DEVICE TeamBase(int num_rows) : num_rows_(num_rows), rows_(padded_rows(num_rows)) {}

  FASTRNN_DEVICE Element* at(Element* x, int n, int k) const {
    return x + (static_cast<int64_t>(n) * rows_ + Op::place(k)) * kTileBatch;
  }
  FASTRNN_DEVICE void put(Element* x, int n, int k, Element first, Element second) const {
    *reinterpret_cast<Pair*>(at(x, n, k) + 2 * Lane::of_thread().quad) = {{first, second}};
  }

  // `value(k, sample of the slice)` for every element of X; rows past the last are zeros, as the weights there are: neither
  // alone would do, since 0 * NaN is NaN.
  template <typename Value>
  FASTRNN_DEVICE void fill(Element* x, Value value) const {
    for (int i = threadIdx.x; i < rows_ * kSamples; i += kThreads) {
      const int k = i % rows_, sample = i / rows_;
      at(x, sample / kTileBatch, k)[sample % kTileBatch] = k < num_rows_ ? value(k, sample) : Op::operand(0);
    }
  }

  // Every warp's sums to shared memory [unit_warps][kSamples]; the warps of other splits own no units.
  FASTRNN_DEVICE static void store_sums(double (&value)[kN][2], const Tiling& tiling, double* sums) {
    const int warp = threadIdx.x / kWarp;
    if (warp < tiling.unit_warps) store_sums_of_warp(value, sums + warp * kSamples);
    __syncthreads();
  }
  // Of a sample: the sum over `count` rows of [.][kSamples] in shared memory.
  FASTRNN_DEVICE static double sum_of_rows(const double* rows, int count, int sample) {
    double sum = 0;
    FASTRNN_UNROLL_BY(4)
    for (int i = 0; i < count; ++i) sum += rows[i * kSamples + sample];
    return sum;
  }
  // The same of a thread's samples, wherever the rows lie; load(index). The lanes that have the same
  // samples share the rows, then add crosswise: the order is fixed, and all of them and all blocks have the same to the bit.
  // kAtOnce: loads of a lane that are under way together.
  template <int kAtOnce = 1, typename Load>
  FASTRNN_DEVICE static void load_sums(double (&value)[kN][2], int count, Load load) {
    const Lane lane = Lane::of_thread();
    unrolled<kN>([&](int n) { value[n][0] = value[n][1] = 0; });
    FASTRNN_UNROLL_BY(kAtOnce)
    for (int i = lane.group; i < count; i += kWarp / 4)
      unrolled<kN>([&](int n) {
        unrolled<2>([&](int j) { value[n][j] += load(i * kSamples + n * kTileBatch + 2 * lane.quad + j); });
      });
    unrolled<kN, 2>([&](int n, int j) { value[n][j] = sum_over_groups(value[n][j]); });
  }

  int num_rows_, rows_;
};

template <typename Op, int kN_>
class BlockTeam : public TeamBase<Op, kN_> {
  using Base = TeamBase<Op, kN_>;

 public:
  using Element = typename Op::Element;
  static constexpr int kN = kN_;
  static constexpr bool kStepwise = false;

  struct Shared {
    Element* x;    // [2, kN, K padded, 8]
    double* sums;  // [unit_warps, kSamples]
    FASTRNN_HD Shared(SharedArrays& arrays, int64_t num_rows, const Tiling& tiling) {
      x = arrays.take<Element>(2 * int64_t{kN} * Base::padded_rows(num_rows) * kTileBatch);
      sums = arrays.take<double>(tiling.unit_warps * Base::kSamples);
    }
  };

  FASTRNN_DEVICE BlockTeam(const Shared& shared, int num_rows, const Tiling& tiling, const Place&, const Workspace&)
      : Base(num_rows), shared_(shared), tiling_(tiling) {}

  template <typename Value>
  FASTRNN_DEVICE void start(int turn, Value value) {
    this->fill(buffer(turn), value);
    this->fill(buffer(turn + 1), [](int, int) { return Op::operand(0); });
  }
  FASTRNN_DEVICE const Element* wait(int turn) {
    __syncthreads();
    return buffer(turn);
  }
  FASTRNN_DEVICE void publish(int turn, int n, int k, bool valid, Element first, Element second) {
    if (valid) this->put(buffer(turn), n, k, first, second);
  }
  FASTRNN_DEVICE void published() {}
  FASTRNN_DEVICE void sum(int, double (&value)[kN][2]) {
    this->store_sums(value, tiling_, shared_.sums);
    this->load_sums(value, tiling_.unit_warps, [&](int i) { return shared_.sums[i]; });
  }
  FASTRNN_DEVICE void finish() {}

 private:
  FASTRNN_DEVICE Element* buffer(int turn) const { return shared_.x + turn % 2 * kN * this->rows_ * kTileBatch; }

  Shared shared_;
  const Tiling& tiling_;
};

template <typename Op, int kN_>
class GridTeam : public TeamBase<Op, kN_> {
  using Base = TeamBase<Op, kN_>;

 public:
  using Element = typename Op::Element;
  static constexpr int kN = kN_;
  static constexpr bool kStepwise = true;  // a launch may begin in the midst of a sequence

  struct Shared {
    Element* x;    // [kN, K padded, 8]
    double* sums;  // [unit_warps, kSamples]
    FASTRNN_HD Shared(SharedArrays& arrays, int64_t num_rows, const Tiling& tiling) {
      x = arrays.take<Element>(int64_t{kN} * Base::padded_rows(num_rows) * kTileBatch);
      sums = arrays.take<double>(tiling.unit_warps * Base::kSamples);
    }
  };

  FASTRNN_DEVICE GridTeam(const Shared& shared, int num_rows, const Tiling& tiling, const Place& place,
                          const Workspace& workspace)
      : Base(num_rows), shared_(shared), tiling_(tiling), place_(place) {
    const int64_t team = place.team;
    exchange_ = static_cast<Element*>(workspace.exchange) + team * 2 * kN * this->rows_ * kTileBatch;
    norms_ = workspace.norms + team * 2 * tiling.team_size * Base::kSamples;
    counters_ = workspace.counters + team * kCounters * kCounterWords;
  }

  template <typename Value>
  FASTRNN_DEVICE void start(int turn, Value value) {
    started_ = turn;
    this->fill(shared_.x, value);
  }
  FASTRNN_DEVICE const Element* wait(int turn) {
    if (turn == started_) {
      __syncthreads();
      return in_shared(shared_.x);
    }
    if (tiling_.persistent) wait_for(counters_, turn - started_, tiling_.team_size, "its operand");
    constexpr int kParts = kTileBatch * sizeof(Element) / 16;  // 16-byte copies a row
    for (int i = threadIdx.x; i < kN * this->rows_ * kParts; i += kThreads) {
      const int row = i / kParts, n = row / this->rows_, k = row % this->rows_;
      const int64_t offset = this->at(shared_.x, n, k) - shared_.x + i % kParts * (16 / sizeof(Element));
      cp_async(shared_.x + offset, buffer(turn) + offset, k < this->num_rows_);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    return in_shared(shared_.x);
  }
  FASTRNN_DEVICE void publish(int turn, int n, int k, bool valid, Element first, Element second) {
    if (valid) this->put(buffer(turn), n, k, first, second);
  }
  FASTRNN_DEVICE void published() {
    if (tiling_.persistent) raise(counters_);
  }

  // This block's part, for the others; then, when all have come, the sum.
  FASTRNN_DEVICE void store_part(int turn, double (&value)[kN][2]) {
    this->store_sums(value, tiling_, shared_.sums);
    if (threadIdx.x < Base::kSamples)
      parts(turn)[place_.rank * Base::kSamples + threadIdx.x] =
          this->sum_of_rows(shared_.sums, tiling_.unit_warps, threadIdx.x);
  }
  FASTRNN_DEVICE void load_total(int turn, double (&value)[kN][2]) {
    this->template load_sums<4>(value, tiling_.team_size, [&](int i) { return load_l2(parts(turn) + i); });
  }
  FASTRNN_DEVICE void sum(int turn, double (&value)[kN][2]) {
    store_part(turn, value);
    raise(counters_ + kCounterWords);
    wait_for(counters_ + kCounterWords, ++sums_, tiling_.team_size, "a sum");
    load_total(turn, value);
  }
  FASTRNN_DEVICE void finish() {}

 private:
  FASTRNN_DEVICE Element* buffer(int turn) const { return exchange_ + turn % 2 * kN * this->rows_ * kTileBatch; }
  FASTRNN_DEVICE double* parts(int turn) const { return norms_ + turn % 2 * tiling_.team_size * Base::kSamples; }

  Shared shared_;
  const Tiling& tiling_;
  Place place_;
  Element* exchange_;
  double* norms_;
  unsigned* counters_;
  int started_ = -1;  // the turn whose operand `start` has put in place
  int sums_ = 0;
};

}  // namespace fastrnn::cuda
