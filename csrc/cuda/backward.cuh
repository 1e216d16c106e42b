// Backpropagation through time of forward.cuh, in one launch (or, stepwise, one step of it).
//
// The same teams: a block owns hidden units. The product of the gate gradients of all units with a unit's column of W_hh is the
// gradient of its h_{t-1}; who multiplies what is the exchange's affair (exchange.cuh). A thread has two units of each group of
// 16, two samples of each tile. A turn undoes one step:
//   1. fetches what forward saved,
//   2. waits for the product of the step after it: r_t, the recurrent gradient,
//   3. clips its norm, which is taken over the team, or leaves its squares for the record (slices.cuh),
//   4. runs the cell backward in registers,
//   5. gives its gate gradients to the exchange,
//   6. stores them, while the others still wait.
// One turn more brings the gradient of the initial state, neither recorded nor clipped.
#pragma once

#include "forward.cuh"
#include "slices.cuh"
#include "two_level.cuh"

namespace fastrnn::cuda {

template <typename Op, typename Cell, typename Exchange>
FASTRNN_DEVICE void run_backward(const BackwardParams& p, const Tiling& tiling, const Workspace& workspace) {
  using Scalar = typename Op::Scalar;
  using Acc = typename Op::Acc;
  using Element = typename Op::Element;
  constexpr int kN = Exchange::kN;
  constexpr int G = Cell::kGates, V = 2;              // a thread's units: `group` and `group` + 8 of a tile
  constexpr int kSums = Cell::kHasExtra ? G + 1 : G;  // of grad_bias, a unit
  FASTRNN_SMEM(buffer);
  SharedArrays arrays(buffer);
  const typename Exchange::Shared shared(arrays, p.shape, tiling);
  const Cell cell(p.shape.cell);
  const int H = static_cast<int>(p.shape.hidden_size), B = static_cast<int>(p.shape.batch);
  const int T = static_cast<int>(p.shape.steps);
  const int64_t D = p.shape.directions;
  const Place place = Place::of_block(tiling, p.shape.directions);
  constexpr bool kRunsStages = Exchange::Team::kRunsStages;
  const bool is_stack = kRunsStages && p.shape.is_stack();
  const int behind = static_cast<int>(p.shape.directions) - 1 - place.direction;
  const Range range = kRunsStages ? Range(p.shape, tiling, behind, tiling.phase == Phase::kFromNorm ? 0 : 1)
                                  : Range(static_cast<int>(p.shape.steps), 1);
  if (is_stack && range.begin >= range.end) return;
  const int d = place.direction, warp = threadIdx.x / kWarp, unit_warp = warp % tiling.unit_warps;
  const bool owns_units = warp < tiling.unit_warps;
  const int first_unit = (place.rank * tiling.unit_warps + unit_warp) * kTileRows;
  const Lane lane = Lane::of_thread();
  const auto runs_back = [&] { return kRunsStages ? p.shape.runs_back(d) : d == 1; };
  const Rows rows = Rows::of(p);
  const ThreadSamples<kN> samples(rows, workspace.order, place.slice);

  Exchange exchange(shared, p.w_hh[d], H, tiling, place, workspace, first_unit);

  const auto unit_of = [&](int v) { return first_unit + v * 8 + lane.group; };
  const auto for_own = [&](auto visit) {
    if (!owns_units) return;
    unrolled<kN, V, 2>([&](int n, int v, int j) {
      if (unit_of(v) < H && samples.exists(n, j, rows)) visit(n, v, j);
    });
  };
  const bool masks_state = p.mask && p.dropout_site == DropoutSite::kState;
  const auto state_at = [&](int sample, int unit) { return (static_cast<int64_t>(d) * B + sample) * H + unit; };

  // Read when it is needed: there are no registers to keep it in.
  const auto mask = [&](int n, int v, int j) { return *at<Acc>(p.mask, state_at(samples.index[n][j], unit_of(v))); };

  // The part of r_t that does not go through the recurrent product, then r_t.
  State<Acc> r[kN][V][2];
  Acc bias[V][kSums];
  unrolled<kN, V, 2>([&](int n, int v, int j) { r[n][v][j] = {Acc(0), Acc(0)}; });
  unrolled<V, kSums>([&](int v, int i) { bias[v][i] = 0; });
  const bool resumes = range.begin > 0 || (kRunsStages && tiling.phase == Phase::kFromNorm);
  for_own([&](int n, int v, int j) {
    if (!resumes) return;
    const int64_t index = state_at(samples.index[n][j], unit_of(v));
    r[n][v][j].h = *at<Acc>(workspace.carried_h, index);
    if constexpr (Cell::kHasCell) r[n][v][j].c = *at<Acc>(workspace.carried_c, index);
  });

  // What arrived at the turn that a stage begins with has been received at the end of the stage before.
  const int first_turn = range.first > 0 ? range.first : T - samples.longest;
  if (!kRunsStages || tiling.persistent) exchange.start(first_turn);
  const float scale = loss_scale(p.grad_scale);
  const bool clips_norm = p.clip_mode == ClipMode::kNorm;
  const bool leaves_squares = workspace.sums.squares && owns_units && first_unit < H;

  int turn = range.begin > first_turn ? range.begin : first_turn;
  bool is_last = false;
  // Until the last turn, which leaves the loop; stepwise, one.
  for (bool runs = turn < range.end; runs; ++turn, runs = !kRunsStages || tiling.persistent) {
    const int step = T - 1 - turn;  // -1: the initial state
    const auto step_t = [&](int n, int j) { return runs_back() ? samples.length[n][j] - 1 - step : step; };
    const auto row_of = [&](int n, int j) { return rows.row(step_t(n, j), samples.index[n][j]); };
    const auto t_before = [&](int n, int j) { return runs_back() ? samples.length[n][j] - step : step - 1; };
    const auto is_live = [&](int n, int j) { return step >= 0 && step < samples.length[n][j]; };

    // As they lie in memory, and without a branch, as in forward: what exists stands in where nothing is live.
    Scalar gates[kN][V][2][G], extra[kN][V][2], grad_y[kN][V][2], h_prev[kN][V][2], h[kN][V][2];
    Acc c_prev[kN][V][2], c[kN][V][2];
    const Scalar* stand_in = static_cast<const Scalar*>(p.w_hh[d]);
    const bool reads_h_prev = !Cell::kHasCell || p.h_prev;
    if (tiling.phase != Phase::kUntilNorm && step >= 0 && owns_units) {
      unrolled<kN>([&](int n) {
        int64_t row[2], before[2];
        unrolled<2>([&](int j) {
          const int sample = is_live(n, j) ? samples.index[n][j] : 0, t = is_live(n, j) ? step_t(n, j) : 0;
          row[j] = rows.row(t, sample);
          before[j] = rows.row(is_live(n, j) && step > 0 ? t_before(n, j) : 0, sample);
        });
        unrolled<V, 2>([&](int v, int j) {
          const int unit = unit_of(v);
          const bool lives = unit < H && is_live(n, j);
          const int64_t of_direction = d * p.shape.rows;
          if constexpr (G > 1) {
            const Scalar* saved = lives ? at<Scalar>(p.gates, (of_direction + row[j]) * G * H + unit) : stand_in;
            unrolled<G>([&](int g) { gates[n][v][j][g] = saved[g * H]; });
          }
          if constexpr (Cell::kHasExtra)
            extra[n][v][j] = *(lives ? at<Scalar>(p.n_h, (of_direction + row[j]) * H + unit) : stand_in);
          if constexpr (Cell::kHasCell) {
            c[n][v][j] = *at<Acc>(p.cells, lives ? (of_direction + row[j]) * H + unit : 0);
            if (step > 0) c_prev[n][v][j] = *at<Acc>(p.cells, lives ? (of_direction + before[j]) * H + unit : 0);
          } else {
            h[n][v][j] = *(lives ? at<Scalar>(p.y, (row[j] * D + d) * H + unit) : stand_in);
          }
          if (reads_h_prev) {
            const Scalar* of_state = step > 0 ? at<Scalar>(p.y, (before[j] * D + d) * H + unit)
                                              : at<Scalar>(p.h0, state_at(samples.index[n][j], unit));
            h_prev[n][v][j] = *(lives ? of_state : stand_in);
          }
          if (p.grad_y)
            grad_y[n][v][j] =
                *(lives ? at<Scalar>(p.grad_y, (row[j] * tiling.grad_y_row + d * tiling.grad_y_direction) * H + unit)
                        : stand_in);
        });
      });
      if constexpr (Cell::kHasCell)  // the only one in storage type: converted at once, but at one step alone
        for_own([&](int n, int v, int j) {
          if (step == 0 && is_live(n, j))
            c_prev[n][v][j] = load(at<Scalar>(p.c0, state_at(samples.index[n][j], unit_of(v))));
        });
    }

    if (tiling.phase != Phase::kFromNorm) {
      Acc sum[kN][1][4];
      if (exchange.receive(turn, first_turn, sum)) {
        if (masks_state) for_own([&](int n, int v, int j) { sum[n][0][v * 2 + j] *= mask(n, v, j); });
        // Without a branch; who owns no units has no use for it.
        unrolled<kN, V, 2>([&](int n, int v, int j) {
          const Acc with_product = r[n][v][j].h + sum[n][0][v * 2 + j];
          r[n][v][j].h = unit_of(v) < H && step + 1 < samples.length[n][j] ? with_product : r[n][v][j].h;
        });
      }
      for_own([&](int n, int v, int j) {
        if (step + 1 != samples.length[n][j]) return;
        const int64_t index = state_at(samples.index[n][j], unit_of(v));
        r[n][v][j].h = p.grad_h_n ? load(at<Scalar>(p.grad_h_n, index)) : Acc(0);
        if constexpr (Cell::kHasCell) r[n][v][j].c = p.grad_c_n ? load(at<Scalar>(p.grad_c_n, index)) : Acc(0);
      });
      if (turn == range.last) {
        is_last = true;
        break;
      }
    }

    double squares[kN][2];
    if (leaves_squares || clips_norm) {
      unrolled<kN, 2>([&](int n, int j) { squares[n][j] = 0; });
      for_own([&](int n, int v, int j) {
        squares[n][j] += static_cast<double>(r[n][v][j].h) * r[n][v][j].h;
        if constexpr (Cell::kHasCell) squares[n][j] += static_cast<double>(r[n][v][j].c) * r[n][v][j].c;
      });
    }
    if (clips_norm) {
      if constexpr (Exchange::Team::kStepwise) {
        if (tiling.phase == Phase::kUntilNorm) {
          exchange.team.store_part(turn, squares);
          break;
        }
        if (tiling.phase == Phase::kFromNorm) {
          exchange.team.load_total(turn, squares);
        } else {
          exchange.team.sum(turn, squares);
        }
      } else {
        exchange.team.sum(turn, squares);
      }
      // Roots and quotients in double take long: only where they may matter.
      const double threshold = p.clip_threshold * scale, never_clipped = threshold * threshold * (1 - 1e-12);
      unrolled<kN, 2>([&](int n, int j) {
        if (!is_live(n, j)) return;
        const bool records = place.rank == 0 && warp == 0 && lane.group == 0;
        if (!records && squares[n][j] < never_clipped) return;
        const double norm = norm_of(squares[n][j], scale);
        const bool clips = norm > p.clip_threshold && norm * 0 == 0;  // not where the norm is not finite
        if (records) {
          const int64_t index = (static_cast<int64_t>(d) * T + step_t(n, j)) * B + samples.index[n][j];
          if (p.norms) *at<Acc>(p.norms, index) = static_cast<Acc>(norm);
          if (p.clipped && clips) p.clipped[index] = true;
        }
        if (!clips) return;
        const Acc factor = static_cast<Acc>(p.clip_threshold / norm);
        unrolled<V>([&](int v) { r[n][v][j].h *= factor, r[n][v][j].c *= factor; });
      });
    }
    if (p.clip_mode == ClipMode::kValue) {
      const Acc limit = static_cast<Acc>(p.clip_threshold * scale);
      for_own([&](int n, int v, int j) {
        if (!is_live(n, j)) return;
        bool clips = clamp_value(limit, r[n][v][j].h);
        if constexpr (Cell::kHasCell) clips |= clamp_value(limit, r[n][v][j].c);
        if (clips && p.clipped)
          set_flag(p.clipped + (static_cast<int64_t>(d) * T + step_t(n, j)) * B + samples.index[n][j]);
      });
    }

    // The gradients of the gates take the place of what forward saved.
    Scalar(&grad_x)[kN][V][2][G] = gates;
    Scalar(&grad_n_h)[kN][V][2] = extra;
    Acc keep[kN][V][2];  // of the candidate
    unrolled<kN, V, 2>([&](int n, int v, int j) { keep[n][v][j] = 1; });
    if (p.mask && !masks_state)
      for_own([&](int n, int v, int j) {
        if (is_live(n, j)) keep[n][v][j] = mask(n, v, j);
      });
    if (owns_units)
      unrolled<kN, V>([&](int n, int v) {
        Element operand[2][G];
        // Without a branch, live or not, so that the chains of both samples run beside each other.
        unrolled<2>([&](int j) {
          const bool lives = unit_of(v) < H && is_live(n, j);
          State<Acc> grad = r[n][v][j];
          if (p.grad_y) grad.h += load(&grad_y[n][v][j]);
          Acc saved[G], of_x[G], of_product[G], saved_extra = 0;
          if constexpr (G > 1) unrolled<G>([&](int g) { saved[g] = load(&gates[n][v][j][g]); });
          if constexpr (Cell::kHasExtra) saved_extra = load(&extra[n][v][j]);
          State<Acc> prev{Acc(0), Acc(0)}, next{Acc(0), Acc(0)};
          if (reads_h_prev) prev.h = load(&h_prev[n][v][j]);
          if constexpr (Cell::kHasCell) {
            prev.c = c_prev[n][v][j];
            next.c = c[n][v][j];
          } else {
            next.h = load(&h[n][v][j]);
          }
          const State<Acc> before =
              cell.backward(grad, saved, saved_extra, prev, next, keep[n][v][j], of_x, of_product);
          r[n][v][j].h = lives ? before.h : r[n][v][j].h;
          r[n][v][j].c = lives ? before.c : r[n][v][j].c;
          unrolled<G>([&](int g) {
            operand[j][g] = Op::operand(lives ? of_product[g] : Acc(0));
            store(&grad_x[n][v][j][g], of_x[g]);
            bias[v][g] += lives ? of_x[g] : Acc(0);
          });
          if constexpr (Cell::kHasExtra) {
            store(&grad_n_h[n][v][j], of_product[G - 1]);
            bias[v][G] += lives ? of_product[G - 1] : Acc(0);
          }
        });
        unrolled<G>([&](int g) { exchange.publish(turn + 1, n, g, unit_of(v), operand[0][g], operand[1][g]); });
      });
    if (leaves_squares)  // before a product that leaves no registers for them
      Exchange::Team::store_sums_of_warp(squares,
                                         squares_at(workspace.sums, d, place.slice, step, first_unit / kTileRows));
    exchange.published(turn + 1);

    for_own([&](int n, int v, int j) {
      if (!is_live(n, j)) return;
      const int unit = unit_of(v);
      const int64_t row = d * p.shape.rows + row_of(n, j);
      unrolled<G>([&](int g) { *at<Scalar>(p.grad_gates, (row * G + g) * H + unit) = grad_x[n][v][j][g]; });
      if constexpr (Cell::kHasExtra) *at<Scalar>(p.grad_n_h, row * H + unit) = grad_n_h[n][v][j];
      if (p.h_prev) {
        const Acc before = load(&h_prev[n][v][j]);
        store(at<Scalar>(p.h_prev, row * H + unit), masks_state ? before * mask(n, v, j) : before);
      }
    });
  }
  exchange.team.finish();

  // In words of the launch and of the loop, since what is kept for it takes registers.
  const bool ends = !kRunsStages || (is_last && turn == T);
  const bool adds_bias = tiling.begin > 0 || (is_stack && first_turn > 0);
  for_own([&](int n, int v, int j) {
    const int unit = unit_of(v), sample = samples.index[n][j];
    const int64_t index = state_at(sample, unit);
    if (ends) {
      store(at<Scalar>(p.grad_h0, index), r[n][v][j].h);
      if constexpr (Cell::kHasCell) store(at<Scalar>(p.grad_c0, index), r[n][v][j].c);
    } else {
      *at<Acc>(workspace.carried_h, index) = r[n][v][j].h;
      if constexpr (Cell::kHasCell) *at<Acc>(workspace.carried_c, index) = r[n][v][j].c;
    }
    if (p.offsets || is_stack || tiling.phase == Phase::kUntilNorm) return;
    // Steps past a length: their rows multiply in the products that follow, so they may not be NaN.
    const int last = T - 1 - tiling.begin, earliest = T - tiling.end;
    for (int t = earliest > samples.length[n][j] ? earliest : samples.length[n][j]; t <= last; ++t) {
      const int64_t row = d * p.shape.rows + rows.row(t, sample);
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) store(at<Scalar>(p.grad_gates, (row * G + g) * H + unit), Acc(0));
      if constexpr (Cell::kHasExtra) store(at<Scalar>(p.grad_n_h, row * H + unit), Acc(0));
      if (p.h_prev) store(at<Scalar>(p.h_prev, row * H + unit), Acc(0));
    }
  });

  if (!owns_units || tiling.phase == Phase::kUntilNorm) return;
  unrolled<V, kSums>([&](int v, int i) {
    Acc total = bias[v][i];
    FASTRNN_UNROLL
    for (int mask = 1; mask < 4; mask *= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
    if (lane.quad != 0 || unit_of(v) >= H) return;
    Acc* sum = at<Acc>(workspace.bias, ((place.slice * D + d) * kSums + i) * H + unit_of(v));
    *sum = adds_bias ? *sum + total : total;
  });
}

template <typename Op, typename Cell, template <typename, int> typename Team, int kN>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_backward(const BackwardParams p, const Tiling tiling, const Workspace workspace) {
  if constexpr (kArch >= Team<Op, kN>::kMinArch)
    run_backward<Op, Cell, ExchangeOf<Op, Cell, Team, kN>>(p, tiling, workspace);
}

}  // namespace fastrnn::cuda
