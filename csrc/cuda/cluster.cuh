// A team that is a cluster: blocks push into each other's shared memory, and a barrier of the receiver counts the bytes.
#pragma once

#include "team.cuh"

namespace fastrnn::cuda {

// What does not depend on what is pushed: barriers, and the sum of a number per sample over all units of the team.
template <typename Op, int kN_>
class ClusterBase : public TeamBase<Op, kN_> {
  using Base = TeamBase<Op, kN_>;

 public:
  static constexpr int kMinArch = kClusterMinArch;
  static constexpr int kN = kN_;
  static constexpr bool kStepwise = false;

  struct Shared {
    MBarrier* barriers;  // [4]  of the operand and of the sums, by parity of the turn
    double* sums;        // [unit_warps, kSamples]
    double* parts;       // [2, cluster, kSamples]
    FASTRNN_HD Shared(SharedArrays& arrays, const Tiling& tiling) {
      barriers = arrays.take<MBarrier>(4);
      sums = arrays.take<double>(tiling.unit_warps * Base::kSamples);
      parts = arrays.take<double>(2 * tiling.cluster_size * Base::kSamples);
    }
  };

  FASTRNN_DEVICE void sum(int, double (&value)[kN][2]) {
    const double* parts = gather_sums(value);
    this->load_sums(value, tiling_.cluster_size, [&](int i) { return parts[i]; });
  }

  // Nobody leaves while a peer may still push to it.
  FASTRNN_DEVICE void finish() { cluster_sync(); }

 protected:
  // The sums over the units of each block, [cluster, kSamples].
  FASTRNN_DEVICE const double* gather_sums(double (&value)[kN][2]) {
    this->store_sums(value, tiling_, shared_.sums);
    const int round = sums_++;
    double* parts = shared_.parts + round % 2 * tiling_.cluster_size * Base::kSamples;
    MBarrier* barrier = shared_.barriers + 2 + round % 2;
    // A thread has a sample and a peer.
    static_assert(kThreads / Base::kSamples >= kMaxClusterSize);
    const int sample = threadIdx.x % Base::kSamples, peer = threadIdx.x / Base::kSamples;
    double* part = parts + rank_ * Base::kSamples + sample;
    if (peer < tiling_.cluster_size) {
      const double sum = this->sum_of_rows(shared_.sums, tiling_.unit_warps, sample);
      uint2 words;
      memcpy(&words, &sum, 8);
      store_async(map_to_peer(part, peer), map_to_peer(barrier, peer), words);
    }
    receive(barrier, round, tiling_.cluster_size * Base::kSamples * sizeof(double));
    return parts;
  }

  FASTRNN_DEVICE ClusterBase(const Shared& shared, int num_rows, const Tiling& tiling, const Place& place)
      : Base(num_rows), shared_(shared), tiling_(tiling), rank_(place.rank) {}

  // Before the first push, which may come as soon as this returns.
  FASTRNN_DEVICE void meet() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 4; ++i) mbarrier_init(shared_.barriers + i, 1);
      fence_mbarrier_init();
    }
    cluster_sync();
  }
  FASTRNN_DEVICE MBarrier* barrier(int turn) const { return shared_.barriers + turn % 2; }

  // `round` counts the uses of both barriers of a kind, which take turns.
  FASTRNN_DEVICE void receive(MBarrier* barrier, int round, size_t bytes) {
    // Nobody is a turn behind, reading what may now be overwritten or waiting for a phase that is over.
    __syncthreads();
    if (threadIdx.x == 0) mbarrier_expect_bytes(barrier, static_cast<unsigned>(bytes));
    Spin spin("its peers", round);
    while (!mbarrier_test(barrier, round / 2 % 2)) spin.pause();
  }

  Shared shared_;
  const Tiling& tiling_;
  int rank_;
  int sums_ = 0;
};

template <typename Op, int kN_>
class ClusterTeam : public ClusterBase<Op, kN_> {
  using Base = ClusterBase<Op, kN_>;

 public:
  using Element = typename Op::Element;
  static constexpr int kN = kN_;

  struct Shared : Base::Shared {
    Element* x;  // [2, kN, K padded, 8]
    FASTRNN_HD Shared(SharedArrays& arrays, int64_t num_rows, const Tiling& tiling) : Base::Shared(arrays, tiling) {
      x = arrays.take<Element>(2 * int64_t{kN} * Base::padded_rows(num_rows) * kTileBatch);
    }
  };

  FASTRNN_DEVICE ClusterTeam(const Shared& shared, int num_rows, const Tiling& tiling, const Place& place,
                             const Workspace&)
      : Base(shared, num_rows, tiling, place), x_(shared.x) {}

  template <typename Value>
  FASTRNN_DEVICE void start(int turn, Value value) {
    started_ = turn;
    this->fill(buffer(turn), value);
    this->fill(buffer(turn + 1), [](int, int) { return Op::operand(0); });
    this->meet();
  }
  FASTRNN_DEVICE const Element* wait(int turn) {
    if (turn != started_)
      this->receive(this->barrier(turn), turn - started_ - 1, this->num_rows_ * Base::kSamples * sizeof(Element));
    return buffer(turn);
  }
  // By whole warps: the four threads of a row put it together, then each sends it to a quarter of the peers.
  FASTRNN_DEVICE void publish(int turn, int n, int k, bool valid, Element first, Element second) {
    const Lane lane = Lane::of_thread();
    Element* row = this->at(buffer(turn), n, valid ? k : 0);
    MBarrier* barrier = this->barrier(turn);
    const int cluster_size = this->tiling_.cluster_size;
    if constexpr (sizeof(Element) == 2) {
      const Element pair[2] = {first, second};
      uint32_t word;
      memcpy(&word, pair, 4);
      uint4 all;
      all.x = __shfl_sync(0xffffffffu, word, lane.group * 4);
      all.y = __shfl_sync(0xffffffffu, word, lane.group * 4 + 1);
      all.z = __shfl_sync(0xffffffffu, word, lane.group * 4 + 2);
      all.w = __shfl_sync(0xffffffffu, word, lane.group * 4 + 3);
      if (!valid) return;
      FASTRNN_NO_UNROLL
      for (int peer = lane.quad; peer < cluster_size; peer += 4)
        store_async(map_to_peer(row, peer), map_to_peer(barrier, peer), all);
    } else {
      __syncwarp();  // lanes without a unit, which nobody waits for, have read the turn before
      if (!valid) return;
      uint2 pair;
      memcpy(&pair.x, &first, 4);
      memcpy(&pair.y, &second, 4);
      FASTRNN_NO_UNROLL
      for (int peer = 0; peer < cluster_size; ++peer)
        store_async(map_to_peer(row + 2 * lane.quad, peer), map_to_peer(barrier, peer), pair);
    }
  }
  FASTRNN_DEVICE void published() {}

 protected:
  int started_ = -1;  // the turn whose operand `start` has put in place

 private:
  FASTRNN_DEVICE Element* buffer(int turn) const { return x_ + turn % 2 * kN * this->rows_ * kTileBatch; }

  Element* x_;
};

}  // namespace fastrnn::cuda
