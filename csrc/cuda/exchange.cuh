// How the gate gradients of a turn, which each block has of its own units, become the recurrent gradient of the next turn:
// dh = W_hh^T dgates. Both ways have the same face:
//   exchange.publish(turn + 1, ...)       by the warps that own units: the gate gradients of their units
//   exchange.published(turn + 1)
//   exchange.receive(turn + 1, sum)       the only place that blocks: dh of the thread's units; false at the first turn of all
//
//   GatherExchange   all blocks get the gate gradients of all, [G*H] rows of the operand's type, and multiply with the columns
//                    of W_hh that belong to their units. In every team.
//   ScatterExchange  a block multiplies its own gate gradients with its own rows of W_hh: a part of dh for all units of the
//                    team. Each owner gets the parts of its units, [H] rows of the sums' type in all, and adds them. In a
//                    cluster, where that is fewer bytes (tiling.h: scatters_gradients).
//   TwoLevelExchange an all-gather within each cluster, then a reduce-scatter between the clusters of a grid (two_level.cuh).
#pragma once

#include "../params.h"
#include "cluster.cuh"
#include "product.cuh"

namespace fastrnn::cuda {

// The columns of W_hh that belong to a warp's units.
template <typename Scalar>
struct GatherRows {
  const Scalar* w_hh;  // [G*H, H]
  int num_rows;        // G*H
  int hidden_size;
  int first_unit;
  FASTRNN_DEVICE WeightRun<Scalar> operator()(int, int half, int row) const {
    const int unit = first_unit + Lane::of_thread().group + 8 * half;
    if (unit >= hidden_size) return {w_hh, 1, 0};
    return {w_hh + static_cast<int64_t>(row) * hidden_size + unit, hidden_size, num_rows - row};
  }
};

template <typename Op, typename Cell, typename Team_>
class GatherExchange {
  using Acc = typename Op::Acc;
  using Scalar = typename Op::Scalar;
  using Element = typename Op::Element;
  // Registers of a thread that hold weights: what the rest of the kernel leaves free.
  static constexpr int kRegisters = Team_::kN == 1 ? 48 : 0;

 public:
  using Team = Team_;
  static constexpr int kN = Team::kN;

  struct Shared {
    static constexpr int kMinArch = Team::kMinArch;
    typename Team::Shared team;
    Acc* partial;            // [splits - 1, unit_warps, kN, 32, 4]
    unsigned char* weights;  // [warps, shared_chunks, Op::kSharedBytes]
    FASTRNN_HD Shared(SharedArrays& arrays, const Shape& shape, const Tiling& tiling)
        : team(arrays, Cell::kGates * shape.hidden_size, tiling) {
      partial = arrays.take<Acc>((tiling.splits - 1) * tiling.unit_warps * kN * 32 * 4);
      weights = arrays.take<unsigned char>(int64_t{kWarps} * tiling.shared_chunks * Op::kSharedBytes);
    }
  };

  FASTRNN_DEVICE GatherExchange(const Shared& shared, const void* w_hh, int hidden_size, const Tiling& tiling,
                                const Place& place, const Workspace& workspace, int first_unit)
      : team(shared.team, Cell::kGates * hidden_size, tiling, place, workspace),
        weights_({static_cast<const Scalar*>(w_hh), Cell::kGates * hidden_size, hidden_size, first_unit},
                 first_chunk(tiling), Team::num_chunks(Cell::kGates * hidden_size), tiling, shared.weights),
        tiling_(tiling),
        partial_(shared.partial),
        hidden_size_(hidden_size),
        owns_units_(first_unit < hidden_size) {}

  FASTRNN_DEVICE void start(int turn) {
    waits_at_first_ = true;
    team.start(turn, [](int, int) { return Op::operand(0); });
  }
  FASTRNN_DEVICE bool receive(int turn, int first_turn, Acc (&sum)[kN][1][4]) {
    // The first turn has nobody to wait for but the threads of its own block.
    if (turn == first_turn && !waits_at_first_) return false;
    const Element* gradients = team.wait(turn);
    if (turn == first_turn) return false;
    if (owns_units_) weights_.multiply(sum, gradients, team.rows());
    add_splits<Acc, kN, 1>(sum, tiling_, partial_);
    return true;
  }
  FASTRNN_DEVICE void publish(int turn, int n, int gate, int unit, Element first, Element second) {
    team.publish(turn, n, gate * hidden_size_ + unit, unit < hidden_size_, first, second);
  }
  FASTRNN_DEVICE void published(int) { team.published(); }

  Team team;

 private:
  WarpWeights<Op, 1, kRegisters / 8, GatherRows<Scalar>> weights_;
  const Tiling& tiling_;
  Acc* partial_;
  int hidden_size_;
  bool owns_units_;
  bool waits_at_first_ = false;
};

// The rows of W_hh that belong to a block's units (or its cluster's), transposed: a tile is 16 units of the team, and its columns
// are the gate gradients of those units, the units of one gate after those of another. A warp's groups of kScatterTiles tiles
// follow each other along the columns, beginning with a different one in different blocks, so that not all send to the same owners
// at a time. Tile i of the block is tile tile_of(i) of the team.
template <typename Scalar, typename TileOf>
struct ScatterRows {
  const Scalar* w_hh;  // [G*H, H]
  int num_gates;
  int hidden_size;
  int first_tile;             // of the warp
  int first_unit, num_units;  // columns of a gate, whether the units exist or not
  int columns_of_group;
  int first_group, num_groups;
  TileOf tile_of;
  FASTRNN_DEVICE WeightRun<Scalar> operator()(int tile, int half, int column) const {
    // Quotients by subtraction: what a division prepares would take registers for the whole sequence.
    int k = column, group = first_group, gate = 0;
    FASTRNN_NO_UNROLL
    for (; k >= columns_of_group; k -= columns_of_group) ++group;
    if (group >= num_groups) group -= num_groups;
    FASTRNN_NO_UNROLL
    for (; k >= num_units; k -= num_units) ++gate;
    const int unit = first_unit + k;
    const int target =
        tile_of(first_tile + group * kScatterTiles + tile) * kTileRows + Lane::of_thread().group + 8 * half;
    if (target >= hidden_size || gate >= num_gates) return {w_hh, 1, 0};
    return {w_hh + (static_cast<int64_t>(gate) * hidden_size + unit) * hidden_size + target, hidden_size,
            hidden_size - unit};
  }
};

// In a cluster a block multiplies for all tiles.
struct EveryTile {
  FASTRNN_DEVICE int operator()(int tile) const { return tile; }
};

// The parts lie in shared memory as the matrix instructions leave them: who adds them has the lane of those that sent them.
//
// What makes overwriting safe. A block sends its parts of turn t + 1 after it has those of turn t from everybody, and the owner
// sent its own of turn t after all of its threads had read those of turn t - 1, which the new ones overwrite: the __syncthreads
// before its product stands between. A norm that is taken in between is one more such exchange, but none is needed. The block's
// own gate gradients are overwritten after the next `add_parts`, which begins with a __syncthreads that follows all products.
template <typename Op, int kN_>
class ScatterTeam : public ClusterBase<Op, kN_> {
  using Base = ClusterBase<Op, kN_>;
  using Acc = typename Op::Acc;
  struct alignas(16) Sums {
    Acc value[4];
  };

 public:
  using Element = typename Op::Element;
  static constexpr int kN = kN_;

  struct Shared : Base::Shared {
    Element* x;   // [kN, K padded, 8]  the block's own gate gradients
    Sums* parts;  // [2, team, unit_warps, kN, 32]
    FASTRNN_HD Shared(SharedArrays& arrays, int64_t num_rows, const Tiling& tiling) : Base::Shared(arrays, tiling) {
      x = arrays.take<Element>(int64_t{kN} * Base::padded_rows(num_rows) * kTileBatch);
      parts = arrays.take<Sums>(2 * int64_t{tiling.team_size} * tiling.unit_warps * kN * kWarp);
    }
  };

  FASTRNN_DEVICE ScatterTeam(const Shared& shared, int num_rows, int num_tiles, const Tiling& tiling,
                             const Place& place)
      : Base(shared, num_rows, tiling, place), x_(shared.x), parts_(shared.parts), num_tiles_(num_tiles) {}

  FASTRNN_DEVICE void start(int turn) {
    started_ = turn;
    this->fill(x_, [](int, int) { return Op::operand(0); });
    this->meet();
  }
  FASTRNN_DEVICE const Element* operand() const { return x_; }
  FASTRNN_DEVICE void publish(int n, int k, Element first, Element second) { this->put(x_, n, k, first, second); }

  // By whole warps: their part of tile `tile` of the team's units, to its owner.
  FASTRNN_DEVICE void send(int turn, int n, int tile, const Acc (&sum)[4]) {
    if (tile >= num_tiles_) return;
    const int owner = tile * this->tiling_.splits / kWarps;  // tile / unit_warps, which takes longer
    const int unit_warp = tile & (this->tiling_.unit_warps - 1);
    uint4 words;
    static_assert(sizeof sum == sizeof words);
    memcpy(&words, sum, sizeof words);
    store_async(map_to_peer(part(turn, this->rank_, unit_warp, n), owner), map_to_peer(this->barrier(turn), owner),
                words);
  }
  // All parts of the units of warp `unit_warp`, in fixed order.
  FASTRNN_DEVICE void add_parts(int turn, int unit_warp, Acc (&sum)[kN][1][4]) {
    const int team_size = this->tiling_.team_size, unit_warps = this->tiling_.unit_warps;
    const int left = num_tiles_ - this->rank_ * unit_warps;
    const int own_tiles = left < unit_warps ? left : unit_warps;
    this->receive(this->barrier(turn), turn - started_ - 1, team_size * own_tiles * kN * kWarp * sizeof(Sums));
    unrolled<kN, 4>([&](int n, int i) { sum[n][0][i] = 0; });
    if (unit_warp >= own_tiles) return;
    for (int rank = 0; rank < team_size; ++rank)
      unrolled<kN>([&](int n) {
        const Sums sums = *part(turn, rank, unit_warp, n);
        unrolled<4>([&](int i) { sum[n][0][i] += sums.value[i]; });
      });
  }

 private:
  FASTRNN_DEVICE Sums* part(int turn, int rank, int unit_warp, int n) const {
    const int unit_warps = this->tiling_.unit_warps;
    return parts_ + (((turn % 2 * this->tiling_.team_size + rank) * unit_warps + unit_warp) * kN + n) * kWarp +
           threadIdx.x % kWarp;
  }

  Element* x_;
  Sums* parts_;
  int num_tiles_;
  int started_ = -1;
};

template <typename Op, typename Cell, int kN_>
class ScatterExchange {
  using Acc = typename Op::Acc;
  using Scalar = typename Op::Scalar;
  using Element = typename Op::Element;
  static constexpr int G = Cell::kGates;
  static constexpr int kRegisters = scatter_registers(kN_, G, sizeof(Element));

 public:
  using Team = ScatterTeam<Op, kN_>;
  static constexpr int kN = kN_;

  struct Shared {
    static constexpr int kMinArch = Team::kMinArch;
    typename Team::Shared team;
    unsigned char* weights;  // [warps, shared_chunks, kScatterTiles, Op::kSharedBytes]
    FASTRNN_HD Shared(SharedArrays& arrays, const Shape&, const Tiling& tiling)
        : team(arrays, G * tiling.unit_warps * kTileRows, tiling) {
      weights = arrays.take<unsigned char>(int64_t{kWarps} * tiling.shared_chunks * kScatterTiles * Op::kSharedBytes);
    }
  };

  FASTRNN_DEVICE ScatterExchange(const Shared& shared, const void* w_hh, int hidden_size, const Tiling& tiling,
                                 const Place& place, const Workspace&, int)
      : team(shared.team, G * units_of_block(tiling), num_tiles(hidden_size), tiling, place),
        num_units_(units_of_block(tiling)),
        first_unit_(place.rank * num_units_),
        chunks_of_group_(Team::num_chunks(G * num_units_)),
        num_groups_(tiling.chunks / chunks_of_group_),
        first_group_(place.rank % num_groups_),
        first_tile_(static_cast<int>(threadIdx.x) / kWarp * num_groups_ * kScatterTiles),
        weights_({static_cast<const Scalar*>(w_hh), G, hidden_size, first_tile_, first_unit_, num_units_,
                  chunks_of_group_ * Op::kChunk, first_group_, num_groups_, EveryTile()},
                 0, first_tile_ < num_tiles(hidden_size) ? tiling.chunks : 0, tiling, shared.weights) {}

  FASTRNN_DEVICE void start(int turn) { team.start(turn); }
  FASTRNN_DEVICE bool receive(int turn, int first_turn, Acc (&sum)[kN][1][4]) {
    if (turn == first_turn) return false;
    team.add_parts(turn, threadIdx.x / kWarp, sum);
    return true;
  }
  FASTRNN_DEVICE void publish(int, int n, int gate, int unit, Element first, Element second) {
    team.publish(n, gate * num_units_ + unit - first_unit_, first, second);
  }
  FASTRNN_DEVICE void published(int turn) {
    __syncthreads();
    Acc sum[kN][kScatterTiles][4];
    const auto clear = [&] { unrolled<kN, kScatterTiles, 4>([&](int n, int tile, int i) { sum[n][tile][i] = 0; }); };
    int chunk = 0, group = first_group_;
    clear();
    weights_.for_chunks([&](int, auto weights_of) {
      weights_.add_chunk(sum, weights_of, team.operand(), team.rows(), chunk);
      if (++chunk < chunks_of_group_) return;
      unrolled<kScatterTiles, kN>(
          [&](int i, int n) { team.send(turn, n, first_tile_ + group * kScatterTiles + i, sum[n][i]); });
      clear();
      chunk = 0;
      if (++group == num_groups_) group = 0;
    });
  }

  Team team;

 private:
  FASTRNN_DEVICE static int units_of_block(const Tiling& tiling) { return tiling.unit_warps * kTileRows; }
  FASTRNN_DEVICE static int num_tiles(int hidden_size) { return (hidden_size + kTileRows - 1) / kTileRows; }

  int num_units_, first_unit_;  // of the block
  int chunks_of_group_;         // of columns
  int num_groups_, first_group_;
  int first_tile_;  // of the team's units, that the warp multiplies
  WarpWeights<Op, kScatterTiles, kRegisters / 8 / kScatterTiles, ScatterRows<Scalar, EveryTile>> weights_;
};

}  // namespace fastrnn::cuda
