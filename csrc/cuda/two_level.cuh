// The exchange of backward where a team is a grid of clusters: an all-gather within each cluster by its shared memory, then a
// reduce-scatter between the clusters through L2. Of what exchange.cuh's ways bring a block, each level has a fraction.
//
// C clusters of S blocks are a team; block `rank` is number rank % S of cluster rank / S. Blocks of the same number, one of each
// cluster, are a row. A turn is
//   1. the gate gradients of the cluster's units are pushed to all its blocks       (ClusterTeam: [G * units of the cluster] rows)
//   2. a block multiplies them with their rows of W_hh: a part of dh, for the units of all blocks of its row, and no others
//   3. it stores that part in L2 and raises the row's counter                       ([units of the row] sums)
//   4. an owner waits until all C blocks of its row have, and adds their parts of its units in fixed order.
// So a block holds as many weights as in any other exchange. Blocks past the last unit take part, with zeros: all wait for all.
//
// What makes overwriting safe. The parts of turn t + 2 take the place of those of turn t. A block sends them after it has had all
// parts of turn t + 1, and an owner raises its counter for turn t + 1 after it has read the parts of turn t. The gate gradients of
// turn t + 2 take the place of those of turn t in a peer. A block pushes them after it has had those of turn t + 1 from that peer,
// which pushes after its product of turn t: a __syncthreads before it raises the counter of turn t stands between. A counter has
// C raises a turn: nobody raises it for turn t + 1 before all have for turn t, so a sum of raises names a turn.
#pragma once

#include "exchange.cuh"

namespace fastrnn::cuda {

// The tiles of the block with this number in its cluster: those of the units of its row.
struct TilesOfRow {
  const Tiling& tiling;
  int number;
  // tile / unit_warps, a quotient by a power of two, is the cluster.
  FASTRNN_DEVICE int operator()(int tile) const {
    const int unit_warp = tile & (tiling.unit_warps - 1);
    return (tile - unit_warp) * tiling.cluster_size + number * tiling.unit_warps + unit_warp;
  }
};

template <typename Op, int kN_>
class TwoLevelTeam : public ClusterTeam<Op, kN_> {
  using Base = ClusterTeam<Op, kN_>;
  using Acc = typename Op::Acc;
  struct alignas(16) Sums {
    Acc value[4];
  };
  static_assert(sizeof(Sums) == 16, "parts are copied 16 bytes at a time");

 public:
  static constexpr int kN = kN_;
  // Layers that need such a team fill a device, and there is no register for it.
  static constexpr bool kRunsStages = false;

  struct Shared : Base::Shared {
    Sums* received;  // [clusters, unit_warps, kN, 32]
    FASTRNN_HD Shared(SharedArrays& arrays, int64_t num_rows, const Tiling& tiling)
        : Base::Shared(arrays, num_rows, tiling) {
      received = arrays.take<Sums>(int64_t{tiling.num_clusters} * tiling.unit_warps * kN * kWarp);
    }
  };

  FASTRNN_DEVICE TwoLevelTeam(const Shared& shared, int num_rows, const Tiling& tiling, const Place& place,
                              const Workspace& workspace)
      : Base(shared, num_rows, tiling, {place.rank % tiling.cluster_size, place.slice, place.direction, place.team},
             workspace),
        workspace_(workspace),
        received_(shared.received),
        cluster_(place.rank / tiling.cluster_size),
        row_(place.team * tiling.cluster_size + this->rank_) {}

  FASTRNN_DEVICE void start(int turn) {
    Base::start(turn, [](int, int) { return Op::operand(0); });
  }

  FASTRNN_DEVICE int num_tiles() const { return num_clusters() * this->tiling_.unit_warps; }
  // By whole warps: the block's part of tile `tile` of its row.
  FASTRNN_DEVICE void send(int turn, int n, int tile, const Acc (&sum)[4]) {
    if (tile < num_tiles())
      parts(turn, cluster_, tile)[n * kWarp + threadIdx.x % kWarp] = {{sum[0], sum[1], sum[2], sum[3]}};
  }
  FASTRNN_DEVICE void sent() { raise(counter()); }
  // All parts of the units of warp `unit_warp`, in fixed order.
  FASTRNN_DEVICE void add_parts(int turn, int unit_warp, Acc (&sum)[kN][1][4]) {
    const int unit_warps = this->tiling_.unit_warps, of_cluster = unit_warps * kN * kWarp;
    wait_for(counter(), turn - this->started_, num_clusters(), "its parts");
    FASTRNN_NO_UNROLL
    for (int i = threadIdx.x; i < num_clusters() * of_cluster; i += kThreads)
      cp_async(received_ + i, parts(turn, i / of_cluster, cluster_ * unit_warps) + i % of_cluster, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    unrolled<kN, 4>([&](int n, int i) { sum[n][0][i] = 0; });
    if (unit_warp >= unit_warps) return;
    for (int cluster = 0; cluster < num_clusters(); ++cluster)
      unrolled<kN>([&](int n) {
        const Sums sums =
            received_[((cluster * unit_warps + unit_warp) * kN + n) * kWarp + static_cast<int>(threadIdx.x) % kWarp];
        unrolled<4>([&](int i) { sum[n][0][i] += sums.value[i]; });
      });
  }

  // Over the units of the cluster, then over the clusters.
  FASTRNN_DEVICE void sum(int, double (&value)[kN][2]) {
    const double* parts = this->gather_sums(value);
    const int round = this->sums_;
    double* of_clusters = totals(round);
    if (threadIdx.x < Base::kSamples)
      of_clusters[cluster_ * Base::kSamples + threadIdx.x] =
          this->sum_of_rows(parts, this->tiling_.cluster_size, threadIdx.x);
    raise(counter() + kCounterWords);
    wait_for(counter() + kCounterWords, round, num_clusters(), "a sum");
    this->load_sums(value, num_clusters(), [&](int i) { return load_l2(of_clusters + i); });
  }

 private:
  // Where things lie is found anew when it is needed: what is kept takes registers from the weights.
  // Of the row: [2, clusters, tiles of the row, kN, 32]
  FASTRNN_DEVICE Sums* parts(int turn, int cluster, int tile) const {
    const int row_of_launch = row_ - this->tiling_.first_team * this->tiling_.cluster_size;
    const int of_parity = row_of_launch * 2 + turn % 2;
    return static_cast<Sums*>(workspace_.parts) +
           ((static_cast<int64_t>(of_parity) * num_clusters() + cluster) * num_tiles() + tile) * kN * kWarp;
  }
  // Of the row: [2, clusters, kSamples]
  FASTRNN_DEVICE double* totals(int round) const {
    return workspace_.norms + (static_cast<int64_t>(row_) * 2 + round % 2) * num_clusters() * Base::kSamples;
  }
  FASTRNN_DEVICE unsigned* counter() const {
    return workspace_.counters + static_cast<int64_t>(row_) * kCounters * kCounterWords;
  }
  FASTRNN_DEVICE int num_clusters() const { return this->tiling_.num_clusters; }

  const Workspace& workspace_;
  Sums* received_;
  int cluster_;
  int row_;  // of all teams
};

template <typename Op, typename Cell, int kN_>
class TwoLevelExchange {
  using Acc = typename Op::Acc;
  using Scalar = typename Op::Scalar;
  using Element = typename Op::Element;
  static constexpr int G = Cell::kGates;
  static constexpr int kRegisters = two_level_registers(kN_, G);

 public:
  using Team = TwoLevelTeam<Op, kN_>;
  static constexpr int kN = kN_;

  struct Shared {
    static constexpr int kMinArch = Team::kMinArch;
    typename Team::Shared team;
    Acc* partial;            // [splits - 1, tile_warps, kN * kScatterTiles, 32, 4]
    unsigned char* weights;  // [warps, shared_chunks, kScatterTiles, Op::kSharedBytes]
    FASTRNN_HD Shared(SharedArrays& arrays, const Shape&, const Tiling& tiling)
        : team(arrays, G * units_of_cluster(tiling), tiling) {
      partial = arrays.take<Acc>((kWarps - tiling.tile_warps) * kN * kScatterTiles * kWarp * 4);
      weights = arrays.take<unsigned char>(int64_t{kWarps} * tiling.shared_chunks * kScatterTiles * Op::kSharedBytes);
    }
  };

  FASTRNN_DEVICE TwoLevelExchange(const Shared& shared, const void* w_hh, int hidden_size, const Tiling& tiling,
                                  const Place& place, const Workspace& workspace, int)
      : team(shared.team, G * units_of_cluster(tiling), tiling, place, workspace),
        tiling_(tiling),
        num_units_(units_of_cluster(tiling)),
        first_unit_(place.rank / tiling.cluster_size * num_units_),
        first_chunk_(static_cast<int>(threadIdx.x) / kWarp / tiling.tile_warps * chunks_of_group(tiling)),
        chunks_of_group_(chunks_of_group(tiling)),
        first_tile_(static_cast<int>(threadIdx.x) / kWarp % tiling.tile_warps * (tiling.chunks / chunks_of_group_) *
                    kScatterTiles),
        partial_(shared.partial),
        weights_({static_cast<const Scalar*>(w_hh), G, hidden_size, first_tile_, first_unit_, num_units_,
                  num_chunks(tiling) * Op::kChunk, 0, tiling.chunks / chunks_of_group_,
                  TilesOfRow{tiling, place.rank % tiling.cluster_size}},
                 first_chunk_,
                 first_tile_ < team.num_tiles() ? tiling.chunks / chunks_of_group_ * num_chunks(tiling) : 0, tiling,
                 shared.weights) {}

  FASTRNN_DEVICE void start(int turn) { team.start(turn); }
  FASTRNN_DEVICE bool receive(int turn, int first_turn, Acc (&sum)[kN][1][4]) {
    if (turn == first_turn) return false;
    team.add_parts(turn, threadIdx.x / kWarp, sum);
    return true;
  }
  FASTRNN_DEVICE void publish(int turn, int n, int gate, int unit, Element first, Element second) {
    team.publish(turn, n, gate * num_units_ + unit - first_unit_, true, first, second);
  }
  FASTRNN_DEVICE void published(int turn) {
    const Element* gradients = team.wait(turn);
    Acc sum[kN][kScatterTiles][4];
    const auto clear = [&] { unrolled<kN, kScatterTiles, 4>([&](int n, int tile, int i) { sum[n][tile][i] = 0; }); };
    const auto send = [&](int tile) {
      unrolled<kScatterTiles, kN>([&](int i, int n) { team.send(turn, n, tile + i, sum[n][i]); });
    };
    int chunk = 0, tile = first_tile_;
    clear();
    weights_.for_chunks([&](int, auto weights_of) {
      weights_.add_chunk(sum, weights_of, gradients, team.rows(), first_chunk_ + chunk);
      if (++chunk < chunks_of_group_ || tiling_.splits > 1) return;
      send(tile);
      clear();
      chunk = 0;
      tile += kScatterTiles;
    });
    if (tiling_.splits > 1) {
      add_splits(sum, tiling_.splits, tiling_.tile_warps, partial_);
      if (static_cast<int>(threadIdx.x) / kWarp < tiling_.tile_warps) send(tile);
    }
    team.sent();
  }

  Team team;

 private:
  FASTRNN_HD static int units_of_cluster(const Tiling& tiling) {
    return tiling.cluster_size * tiling.unit_warps * kTileRows;
  }
  FASTRNN_DEVICE static int num_chunks(const Tiling& tiling) { return Team::num_chunks(G * units_of_cluster(tiling)); }
  // A warp has several groups of tiles, or a share of the columns of one.
  FASTRNN_DEVICE static int chunks_of_group(const Tiling& tiling) {
    return tiling.splits > 1 ? tiling.chunks : num_chunks(tiling);
  }

  const Tiling& tiling_;
  int num_units_, first_unit_;  // of the cluster
  int first_chunk_;             // of the columns
  int chunks_of_group_;
  int first_tile_;  // of the row's, that the warp multiplies
  Acc* partial_;
  WarpWeights<Op, kScatterTiles, kRegisters / 8 / kScatterTiles, ScatterRows<Scalar, TilesOfRow>> weights_;
};

// The exchange of a team's backward.
template <typename Op, typename Cell, template <typename, int> typename Team, int kN>
struct ExchangeFor {
  using Type = GatherExchange<Op, Cell, Team<Op, kN>>;
};
template <typename Op, typename Cell, int kN>
struct ExchangeFor<Op, Cell, ClusterTeam, kN> {
  static constexpr bool kScatters = scatters_gradients(Cell::kGates, sizeof(typename Op::Element));
  using Type =
      std::conditional_t<kScatters, ScatterExchange<Op, Cell, kN>, GatherExchange<Op, Cell, ClusterTeam<Op, kN>>>;
};
template <typename Op, typename Cell, int kN>
struct ExchangeFor<Op, Cell, TwoLevelTeam, kN> {
  using Type = TwoLevelExchange<Op, Cell, kN>;
};
template <typename Op, typename Cell, template <typename, int> typename Team, int kN>
using ExchangeOf = typename ExchangeFor<Op, Cell, Team, kN>::Type;

}  // namespace fastrnn::cuda
