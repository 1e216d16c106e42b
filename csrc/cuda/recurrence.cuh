// From a plan to launches of forward.cuh and backward.cuh; instantiate/ compiles it, a cell and an arithmetic at a time.
#pragma once

#include <algorithm>

#include "backward.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "scratch.h"
#include "slices.h"

namespace fastrnn::cuda {

inline size_t counter_bytes(const Plan& plan) {
  return size_t(plan.num_teams) * plan.tiling.cluster_size * kCounters * kCounterBytes;
}

// `num_rows`: of the operand; `num_sums`: columns of grad_bias, 0 in forward; `records`: norms that are not clipped by.
template <typename Op>
Workspace cut_workspace(Scratch& scratch, const Shape& shape, const Plan& plan, int64_t num_rows, int64_t num_sums,
                        bool records) {
  using Acc = typename Op::Acc;
  const int64_t samples = int64_t{plan.batch_tiles} * kTileBatch;
  const int64_t rows = (num_rows + Op::kChunk - 1) / Op::kChunk * Op::kChunk;
  const int64_t states = shape.directions * shape.batch * shape.hidden_size * sizeof(Acc);
  Workspace workspace{};
  if (plan.team == Team::kStepwise || plan.team == Team::kGrid) {
    workspace.counters = static_cast<unsigned*>(scratch.take(counter_bytes(plan)));
    if (plan.is_two_level()) {
      workspace.parts = scratch.take(plan.teams_at_once * plan.part_bytes);
    } else {
      workspace.exchange = scratch.take(plan.num_teams * 2 * samples * rows * sizeof(typename Op::Element));
    }
    if (num_sums > 0)
      workspace.norms =
          static_cast<double*>(scratch.take(plan.num_teams * 2 * plan.tiling.team_size * samples * sizeof(double)));
  }
  if (plan.team == Team::kStepwise || shape.is_stack()) {
    workspace.carried_h = scratch.take(states);
    workspace.carried_c = scratch.take(states);
  }
  if (num_sums > 0) workspace.bias = scratch.take(plan.tiling.num_slices * num_sums * sizeof(Acc));
  if (records) {
    SquareSums& sums = workspace.sums;
    sums = {nullptr, plan.tiling.num_slices, shape.steps, (shape.hidden_size + kTileRows - 1) / kTileRows, samples};
    sums.squares = static_cast<double*>(
        scratch.take(plan.num_teams * sums.num_steps * sums.num_warps * sums.slice_size * sizeof(double)));
  }
  return workspace;
}

// Slices that end early where they can: packed batches are in order already, and one slice has no choice.
template <typename Params>
void order_samples(const Launch& beside, const Params& params, const Plan& plan, Scratch& scratch,
                   Workspace& workspace) {
  if (!params.lengths || params.offsets || plan.tiling.num_slices <= 1) return;
  workspace.order = static_cast<OrderedSample*>(scratch.take(params.shape.batch * sizeof(OrderedSample)));
  launch_order_by_length(beside, workspace.order, params);
}

// Launches `kernel` for all teams: at once where they do not wait for each other or all are resident, else in turns. False where
// not even one team fits, by what the runtime says beforehand or by its answer to the first launch.
template <typename Params>
bool launch_teams(Launch launch_, void (*kernel)(Params, Tiling, Workspace), const Params& params, const Plan& plan,
                  const DeviceLimits& device, Tiling tiling, const Workspace& workspace) {
  if (plan.num_teams == 0) return true;
  const bool waits = plan.team == Team::kCluster || plan.team == Team::kGrid;
  int at_once = plan.num_teams;
  if (plan.team == Team::kGrid) {
    at_once = plan.is_two_level() ? std::min(plan.teams_at_once, resident_clusters(launch_, kernel).value_or(0) *
                                                                     tiling.cluster_size / tiling.team_size)
                                  : resident_blocks(launch_, kernel, device.multiprocessors) / tiling.team_size;
    if (at_once == 0) return false;
    launch_.cooperative = true;
  }
  for (tiling.first_team = 0; tiling.first_team < plan.num_teams; tiling.first_team += at_once) {
    launch_.grid = std::min(at_once, plan.num_teams - tiling.first_team) * tiling.team_size;
    if (waits && tiling.first_team == 0) {
      if (!launch_if_it_fits(launch_, kernel, params, tiling, workspace)) return false;
    } else {
      launch(launch_, kernel, params, tiling, workspace);
    }
  }
  return true;
}

// Runs the launches of a plan: `steps` of them for stepwise, each in the phases that `phases(step)` gives.
template <typename Shared, typename Params, typename Phases>
bool run_plan(const char* name, void (*kernel)(Params, Tiling, Workspace), const Params& params, const Plan& plan,
              const DeviceLimits& device, const Run& run, const Workspace& workspace, bool backward, Phases phases) {
  SharedArrays arrays(nullptr);
  Shared(arrays, params.shape, plan.tiling);
  Launch launch_;
  launch_.what = std::string(name) + ", plan " + team_name(plan.team) + ", " + describe(params.shape);
  launch_.stream = run.stream;
  launch_.threads = kThreads;
  launch_.shared_bytes = arrays.used();
  if (static_cast<int64_t>(arrays.used()) != plan.shared_bytes)
    throw std::logic_error(launch_.what + ": the plan has " + std::to_string(plan.shared_bytes) +
                           " bytes of shared memory, the kernel " + std::to_string(arrays.used()));
  if (device.compiled_arch < Shared::kMinArch)
    throw std::logic_error(launch_.what + ": the kernel is empty in code for architecture " +
                           std::to_string(device.compiled_arch));
  launch_.cluster_size = plan.tiling.cluster_size;
  prepare(launch_, kernel, device.shared_per_block);
  if (plan.team == Team::kCluster && resident_clusters(launch_, kernel).value_or(0) == 0) return false;
  if (plan.team == Team::kGrid) clear(launch_, workspace.counters, counter_bytes(plan));
  Tiling tiling = plan.tiling;
  const Shape& shape = params.shape;
  tiling.grad_y_row = shape.is_stack() ? 1 : shape.directions;
  tiling.grad_y_direction = shape.is_stack() ? shape.rows : 1;
  const int steps = static_cast<int>(shape.is_stack() ? shape.chunk : shape.steps) + backward;
  if (plan.team != Team::kStepwise) {
    tiling.begin = 0;
    tiling.end = steps;
    return launch_teams(launch_, kernel, params, plan, device, tiling, workspace);
  }
  for (int step = 0; step < std::max(steps, 1); ++step)
    for (Phase phase : phases(step)) {
      tiling.begin = step;
      tiling.end = std::min(step + 1, steps);
      tiling.phase = phase;
      launch_teams(launch_, kernel, params, plan, device, tiling, workspace);
    }
  return true;
}

template <typename Op, typename Cell, template <typename, int> typename Team, int kN>
bool forward_by(const ForwardParams& params, const Plan& plan, const DeviceLimits& device, const Run& run) {
  constexpr bool kIsBlock = std::is_same_v<Team<Op, kN>, BlockTeam<Op, kN>>;
  constexpr int kGroups = kIsBlock && GateTiles<Cell>::kPaired ? 2 : 1;
  Launch beside;
  beside.what = "recurrence_forward of " + describe(params.shape);
  beside.stream = run.stream;
  Scratch scratch(run, beside.what);
  Workspace workspace = cut_workspace<Op>(scratch, params.shape, plan, params.shape.hidden_size, 0, false);
  order_samples(beside, params, plan, scratch, workspace);
  return run_plan<ForwardShared<Op, Cell, Team<Op, kN>, kGroups>>(
      "recurrence_forward", recurrence_forward<Op, Cell, Team, kN, kGroups>, params, plan, device, run, workspace,
      /*backward=*/false, [](int) { return std::vector{Phase::kWhole}; });
}

template <typename Op, typename Cell, template <typename, int> typename Team, int kN>
bool backward_by(const BackwardParams& params, const Plan& plan, const DeviceLimits& device, const Run& run) {
  using Acc = typename Op::Acc;
  using Exchange = ExchangeOf<Op, Cell, Team, kN>;
  const Shape& shape = params.shape;
  const int64_t num_sums = shape.directions * (Cell::kHasExtra ? Cell::kGates + 1 : Cell::kGates) * shape.hidden_size;
  Launch beside;  // of what comes before and after the recurrence
  beside.what = "recurrence_backward of " + describe(shape);
  beside.stream = run.stream;
  Scratch scratch(run, beside.what);
  const bool clips_norm = params.clip_mode == ClipMode::kNorm, records = params.norms && !clips_norm;
  Workspace workspace = cut_workspace<Op>(scratch, shape, plan, Cell::kGates * shape.hidden_size, num_sums, records);
  order_samples(beside, params, plan, scratch, workspace);
  // Where a sample has no step, nothing is written, but by finish_norms.
  const size_t recorded = shape.directions * shape.steps * shape.batch;
  const bool begins = shape.stage == 0;
  if (begins && params.norms && clips_norm) clear(beside, params.norms, recorded * sizeof(Acc));
  if (begins && params.clipped) clear(beside, params.clipped, recorded);
  const auto phases = [&](int turn) {
    if (!clips_norm || turn == shape.steps) return std::vector{Phase::kWhole};
    return std::vector{Phase::kUntilNorm, Phase::kFromNorm};
  };
  if (!run_plan<typename Exchange::Shared>("recurrence_backward", recurrence_backward<Op, Cell, Team, kN>, params, plan,
                                           device, run, workspace, /*backward=*/true, phases))
    return false;
  if (shape.stage + 1 < shape.stages()) return true;
  if (params.grad_bias)
    launch_sum_slices(beside, static_cast<Acc*>(params.grad_bias), static_cast<const Acc*>(workspace.bias), num_sums,
                      int64_t{plan.tiling.num_slices});
  if (records) launch_finish_norms<Acc>(beside, params, workspace);
  return true;
}

// Calls `function` with the team and the number of batch tiles of a plan. `kTwoLevelTiles`: the most of a two-level plan,
// which backward alone has.
template <typename Op, int kTwoLevelTiles, typename Function>
bool with_team(const Plan& plan, Function function) {
  constexpr bool kHasClusters = sizeof(typename Op::Element) < 8;
  const auto with_tiles = [&]<template <typename, int> typename Team>() {
    return plan.batch_tiles == 1 ? function.template operator()<Team, 1>() : function.template operator()<Team, 2>();
  };
  switch (plan.team) {
    case Team::kBlock: return function.template operator()<BlockTeam, 1>();
    case Team::kCluster:
      if constexpr (kHasClusters) return with_tiles.template operator()<ClusterTeam>();
      return false;
    default:
      if constexpr (kHasClusters && kTwoLevelTiles == 1)
        if (plan.is_two_level()) return function.template operator()<TwoLevelTeam, 1>();
      if constexpr (kHasClusters && kTwoLevelTiles == 2)
        if (plan.is_two_level()) return with_tiles.template operator()<TwoLevelTeam>();
      return with_tiles.template operator()<GridTeam>();
  }
}

template <typename Op, typename Cell>
bool Recurrence<Op, Cell>::forward(const ForwardParams& params, const Plan& plan, const DeviceLimits& device,
                                   const Run& run) {
  return with_team<Op, 0>(plan, [&]<template <typename, int> typename Team, int kN>() {
    return forward_by<Op, Cell, Team, kN>(params, plan, device, run);
  });
}

template <typename Op, typename Cell>
bool Recurrence<Op, Cell>::backward(const BackwardParams& params, const Plan& plan, const DeviceLimits& device,
                                    const Run& run) {
  return with_team<Op, max_two_level_tiles(Cell::kGates)>(plan, [&]<template <typename, int> typename Team, int kN>() {
    return backward_by<Op, Cell, Team, kN>(params, plan, device, run);
  });
}

}  // namespace fastrnn::cuda
