// A whole RNN, LSTM or GRU sequence, forward, in one launch (or, stepwise, one step of it).
//
// A team of blocks (team.cuh) has one slice of the batch in one direction and, together, all of W_hh. A block owns hidden units
// with all their gates; a warp of it a group of units, or a share of the columns for such a group (product.cuh). The rows of
// the warp's tiles are ordered so that one thread has all gates of its units: it keeps their state in registers. Each step
//   1. fetches the input side of the gates,
//   2. waits for the whole h_{t-1}, masked,          (team.wait)
//   3. multiplies the weights with it, and adds what other warps have of the columns,
//   4. runs the cell in registers,
//   5. gives its rows of h_t to the team,            (team.publish)
//   6. stores y and what backward needs, while the others still wait.
#pragma once

#include "../params.h"
#include "cell.cuh"
#include "cluster.cuh"
#include "product.cuh"
#include "rows.cuh"
#include "team.cuh"

namespace fastrnn::cuda {

// How the gates of a group of units lie in tiles of 16 rows. Four gates: {i, f} of 8 units, {g, o} of 8 units. Fewer: a tile a
// gate, of 16 units.
template <typename Cell>
struct GateTiles {
  static constexpr bool kPaired = Cell::kGates == 4;
  static constexpr int kUnits = kPaired ? 8 : 16;            // of a group
  static constexpr int kTiles = kPaired ? 2 : Cell::kGates;  // of a group
  static constexpr int kUnitsPerThread = kPaired ? 1 : 2;    // `group`, and then `group` + 8
  // The sum of a gate, of a thread's unit v and sample j.
  template <typename Acc>
  FASTRNN_DEVICE static Acc gate(const Acc* tiles, int gate, int v, int j) {
    return kPaired ? tiles[gate / 2 * 4 + gate % 2 * 2 + j] : tiles[gate * 4 + 2 * v + j];
  }
};

// The weight rows of a warp's tiles in forward.
template <typename Scalar, typename Cell>
struct ForwardRows {
  const Scalar* w_hh;  // [G*H, H]
  int hidden_size;
  int first_unit;  // of the warp
  FASTRNN_DEVICE WeightRun<Scalar> operator()(int tile, int half, int column) const {
    using Tiles = GateTiles<Cell>;
    const int unit = first_unit + tile / Tiles::kTiles * Tiles::kUnits + Lane::of_thread().group;
    const int in_group = tile % Tiles::kTiles;
    return Tiles::kPaired ? run(2 * in_group + half, unit, column) : run(in_group, unit + 8 * half, column);
  }
  FASTRNN_DEVICE WeightRun<Scalar> run(int gate, int unit, int column) const {
    if (unit >= hidden_size) return {w_hh, 1, 0};
    return {w_hh + (static_cast<int64_t>(gate) * hidden_size + unit) * hidden_size + column, 1, hidden_size - column};
  }
};

template <typename Op, typename Cell, typename Team, int kGroups>
struct ForwardShared {
  static constexpr int kTiles = kGroups * GateTiles<Cell>::kTiles, kMinArch = Team::kMinArch;
  typename Team::Shared team;
  typename Op::Acc* partial;  // [splits - 1, unit_warps, kN * kTiles, 32, 4]
  unsigned char* weights;     // [warps, shared_chunks, kTiles, Op::kSharedBytes]
  FASTRNN_HD ForwardShared(SharedArrays& arrays, const Shape& shape, const Tiling& tiling)
      : team(arrays, shape.hidden_size, tiling) {
    partial = arrays.take<typename Op::Acc>((tiling.splits - 1) * tiling.unit_warps * Team::kN * kTiles * 32 * 4);
    weights = arrays.take<unsigned char>(int64_t{kWarps} * tiling.shared_chunks * kTiles * Op::kSharedBytes);
  }
};

// The samples of a slice that a thread has: of tile n, at the places 2 * quad + j.
template <int kN>
struct ThreadSamples {
  int index[kN][2];   // in the batch
  int length[kN][2];  // 0 past the batch
  int longest;        // of the slice
  // A lane of the warp finds a sample and its length, for all.
  FASTRNN_DEVICE ThreadSamples(const Rows& rows, const OrderedSample* order, int slice) {
    const int of_lane = threadIdx.x % kWarp % (kN * kTileBatch);
    const OrderedSample found = rows.sample_at(slice * kN * kTileBatch + of_lane, order);
    longest = found.length;
    FASTRNN_UNROLL
    for (int mask = 1; mask < kN * kTileBatch; mask *= 2) {
      const int other = __shfl_xor_sync(0xffffffffu, longest, mask);
      longest = other > longest ? other : longest;
    }
    for (int n = 0; n < kN; ++n)
      for (int j = 0; j < 2; ++j) {
        const int in_slice = n * kTileBatch + 2 * Lane::of_thread().quad + j;
        index[n][j] = __shfl_sync(0xffffffffu, found.index, in_slice);
        length[n][j] = __shfl_sync(0xffffffffu, found.length, in_slice);
      }
  }
  FASTRNN_DEVICE bool exists(int n, int j, const Rows& rows) const { return index[n][j] < rows.batch; }
};

template <typename Op, typename Cell, template <typename, int> typename Team_, int kN, int kGroups>
FASTRNN_DEVICE void run_forward(const ForwardParams& p, const Tiling& tiling, const Workspace& workspace) {
  using Scalar = typename Op::Scalar;
  using Acc = typename Op::Acc;
  using Element = typename Op::Element;
  using Team = Team_<Op, kN>;
  using Tiles = GateTiles<Cell>;
  constexpr int G = Cell::kGates, V = kGroups * Tiles::kUnitsPerThread;  // a thread's units
  constexpr int kTiles = kGroups * Tiles::kTiles;
  FASTRNN_SMEM(buffer);
  SharedArrays arrays(buffer);
  const ForwardShared<Op, Cell, Team, kGroups> shared(arrays, p.shape, tiling);
  const Cell cell(p.shape.cell);
  const int H = static_cast<int>(p.shape.hidden_size), B = static_cast<int>(p.shape.batch);
  const int64_t D = p.shape.directions;
  const Place place = Place::of_block(tiling, p.shape.directions);
  const Range range(p.shape, tiling, place.direction, 0);
  if (p.shape.is_stack() && range.begin >= range.end) return;
  const int d = place.direction, warp = threadIdx.x / kWarp, unit_warp = warp % tiling.unit_warps;
  const bool owns_units = warp < tiling.unit_warps;
  const int first_unit = (place.rank * tiling.unit_warps + unit_warp) * kGroups * Tiles::kUnits;
  const Lane lane = Lane::of_thread();
  const Rows rows = Rows::of(p);
  const ThreadSamples<kN> samples(rows, workspace.order, place.slice);

  const ForwardRows<Scalar, Cell> weight_rows{static_cast<const Scalar*>(p.w_hh[d]), H, first_unit};
  const WarpWeights<Op, kTiles, forward_registers(kN, G) / 8 / kTiles, ForwardRows<Scalar, Cell>> weights(
      weight_rows, first_chunk(tiling), Team::num_chunks(H), tiling, shared.weights);

  const auto unit_of = [&](int v) {
    return first_unit + v / Tiles::kUnitsPerThread * Tiles::kUnits + v % Tiles::kUnitsPerThread * 8 + lane.group;
  };
  const auto for_own = [&](auto visit) {
    if (!owns_units) return;
    unrolled<kN, V, 2>(visit);
  };
  const bool masks_state = p.mask && p.dropout_site == DropoutSite::kState;
  const auto state_at = [&](int sample, int unit) { return (static_cast<int64_t>(d) * B + sample) * H + unit; };

  // Starting values, and what of the parameters does not change with the step.
  State<Acc> state[kN][V][2];
  Acc mask[kN][V][2];  // of the operand or of the candidate
  Acc b_hn[V];
  for_own([&](int n, int v, int j) {
    const int unit = unit_of(v);
    const int64_t index = state_at(samples.index[n][j], unit);
    state[n][v][j] = {Acc(0), Acc(0)};
    mask[n][v][j] = 1;
    b_hn[v] = 0;
    if (unit >= H) return;
    if constexpr (Cell::kHasExtra)
      if (p.b_hn[d]) b_hn[v] = load(at<Scalar>(p.b_hn[d], unit));
    if (!samples.exists(n, j, rows)) return;
    if (p.mask) mask[n][v][j] = *at<Acc>(p.mask, index);
    if (range.begin == 0) {
      state[n][v][j].h = load(at<Scalar>(p.h0, index));
      if constexpr (Cell::kHasCell) state[n][v][j].c = load(at<Scalar>(p.c0, index));
    } else {
      state[n][v][j].h = *at<Acc>(workspace.carried_h, index);
      if constexpr (Cell::kHasCell) state[n][v][j].c = *at<Acc>(workspace.carried_c, index);
    }
  });

  Team team(shared.team, H, tiling, place, workspace);
  // What the product sees of h: rounded to storage, masked, rounded again.
  const auto to_operands = [&](Acc(&h)[2], const Acc(&factor)[2], Element(&operands)[2]) {
    round_pair<Scalar>(h);
    if (masks_state) {
      h[0] *= factor[0], h[1] *= factor[1];
      round_pair<Scalar>(h);
    }
    operands[0] = Op::operand(h[0]), operands[1] = Op::operand(h[1]);
  };
  if (tiling.begin == 0) {
    team.start(range.begin, [&](int k, int sample) {
      const int b = rows.index_at(place.slice * Team::kSamples + sample, workspace.order);
      if (b >= B) return Op::operand(0);
      const int64_t index = state_at(b, k);
      // of the step before, not the carried state, which others may be overwriting
      const Scalar* before =
          range.begin == 0 ? at<Scalar>(p.h0, index) : at<Scalar>(p.y, (rows.row(range.begin - 1, b) * D + d) * H + k);
      Acc h[2] = {load(before), Acc(0)};
      const Acc factor[2] = {masks_state ? *at<Acc>(p.mask, index) : Acc(1), Acc(1)};
      Element operands[2];
      to_operands(h, factor, operands);
      return operands[0];
    });
  }

  const int last = samples.longest < range.last ? samples.longest : range.last;
  const int steps = last < range.end ? last : range.end;
  for (int step = range.begin; step < steps; ++step) {
    const auto step_t = [&](int n, int j) { return p.shape.runs_back(d) ? samples.length[n][j] - 1 - step : step; };
    const auto is_live = [&](int n, int v, int j) { return unit_of(v) < H && step < samples.length[n][j]; };
    // As they lie in memory, and without a branch (weights stand in where nothing is live): nobody waits for a load before all
    // are under way, nor before the operand has come.
    Scalar x[kN][V][2][G];
    int64_t row[kN][2];
    unrolled<kN, 2>([&](int n, int j) {
      const bool lives = step < samples.length[n][j];
      row[n][j] = rows.row(lives ? step_t(n, j) : 0, lives ? samples.index[n][j] : 0);
    });
    for_own([&](int n, int v, int j) {
      const Scalar* gates = is_live(n, v, j) ? at<Scalar>(p.gates, (d * p.shape.rows + row[n][j]) * G * H + unit_of(v))
                                             : static_cast<const Scalar*>(p.w_hh[d]);
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) x[n][v][j][g] = gates[g * H];
    });

    const Element* h = team.wait(step);
    Acc sum[kN][kTiles][4];
    if (first_unit < H) weights.multiply(sum, h, team.rows());
    add_splits<Acc, kN, kTiles>(sum, tiling, shared.partial);

    Acc extra[kN][V][2];
    Element operands[kN][V][2];
    // Without a branch, live or not, so that the chains of all cells run beside each other.
    for_own([&](int n, int v, int j) {
      const Acc* tiles = sum[n][v / Tiles::kUnitsPerThread * Tiles::kTiles];
      Acc r[G], gates[G], of_x[G];
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) {
        r[g] = Tiles::gate(tiles, g, v % Tiles::kUnitsPerThread, j);
        of_x[g] = load(&x[n][v][j][g]);
      }
      if constexpr (Cell::kHasExtra) r[G - 1] += b_hn[v];
      const Acc keep = p.dropout_site == DropoutSite::kCandidate ? mask[n][v][j] : Acc(1);
      const State<Acc> next = cell.forward(of_x, r, state[n][v][j], keep, gates, extra[n][v][j]);
      const bool lives = is_live(n, v, j);
      state[n][v][j].h = lives ? next.h : state[n][v][j].h;
      state[n][v][j].c = lives ? next.c : state[n][v][j].c;
      if constexpr (G > 1) {
        FASTRNN_UNROLL
        for (int g = 0; g < G; ++g) store(&x[n][v][j][g], gates[g]);
      }
    });
    if (owns_units)
      unrolled<kN, V>([&](int n, int v) {
        Acc h[2] = {state[n][v][0].h, state[n][v][1].h};
        to_operands(h, mask[n][v], operands[n][v]);
      });
    if (step + 1 < last) {
      if (owns_units)
        unrolled<kN, V>([&](int n, int v) {
          team.publish(step + 1, n, unit_of(v), unit_of(v) < H, operands[n][v][0], operands[n][v][1]);
        });
      team.published();
    }

    for_own([&](int n, int v, int j) {
      if (!is_live(n, v, j)) return;
      const int unit = unit_of(v);
      const int64_t row = rows.row(step_t(n, j), samples.index[n][j]), unit_at = (d * p.shape.rows + row) * H + unit;
      store(at<Scalar>(p.y, (row * D + d) * H + unit), state[n][v][j].h);
      if (!p.save) return;
      if constexpr (G > 1) {
        Scalar* gates = at<Scalar>(p.gates, ((d * p.shape.rows + row) * G) * H + unit);
        FASTRNN_UNROLL
        for (int g = 0; g < G; ++g) gates[g * H] = x[n][v][j][g];
      }
      if constexpr (Cell::kHasCell) *at<Acc>(p.cells, unit_at) = state[n][v][j].c;
      if constexpr (Cell::kHasExtra) store(at<Scalar>(p.n_h, unit_at), extra[n][v][j]);
    });
  }

  for_own([&](int n, int v, int j) {
    const int unit = unit_of(v), sample = samples.index[n][j];
    const int64_t index = state_at(sample, unit);
    if (unit >= H || !samples.exists(n, j, rows)) return;
    if (!p.offsets)  // past a length y is zero
      for (int t = samples.length[n][j] > range.begin ? samples.length[n][j] : range.begin; t < range.end; ++t)
        store(at<Scalar>(p.y, (rows.row(t, sample) * D + d) * H + unit), Acc(0));
    if (range.end == p.shape.steps) {
      store(at<Scalar>(p.h_n, index), state[n][v][j].h);
      if constexpr (Cell::kHasCell) store(at<Scalar>(p.c_n, index), state[n][v][j].c);
    } else {
      *at<Acc>(workspace.carried_h, index) = state[n][v][j].h;
      if constexpr (Cell::kHasCell) *at<Acc>(workspace.carried_c, index) = state[n][v][j].c;
    }
  });
  team.finish();
}

template <typename Op, typename Cell, template <typename, int> typename Team, int kN, int kGroups>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_forward(const ForwardParams p, const Tiling tiling, const Workspace workspace) {
  if constexpr (kArch >= Team<Op, kN>::kMinArch) run_forward<Op, Cell, Team, kN, kGroups>(p, tiling, workspace);
}

}  // namespace fastrnn::cuda
