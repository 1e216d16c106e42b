// Which kernel runs a layer's recurrence on a GPU, and how it divides the work: a pure function of shape, type and device.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/tiling.h"
#include "params.h"

namespace fastrnn {

enum class Team : int {
  kBlock,     // one block holds all of W_hh; no two blocks wait for each other
  kCluster,   // a thread block cluster does, and exchanges h in its shared memory (9.0 and later)
  kGrid,      // many blocks do, and exchange h through L2; in backward they may be many clusters
  kStepwise,  // a launch per step
  kMatmul,  // torch's matrix product and kernels for the cell, at every step; the only one for proj_size and before 8.0
};
const char* team_name(Team team);

// How products are computed: on the tensor cores in the storage type or as tf32, or with ordinary multiply-adds.
enum class Arithmetic : int { kTensor16, kTf32, kFma };

struct DeviceLimits {
  int major, minor;  // compute capability
  int multiprocessors;
  int shared_per_block;  // bytes, after opting in
  int compiled_arch;     // of the kernels' code for this device, 80 for 8.0; 0: there is none
  // [size]: clusters that run at the same time where a block takes a multiprocessor; 0: none does. A cluster does not leave its
  // part of the chip, and the size seldom divides a part's multiprocessors: fewer than multiprocessors / size.
  std::array<int, cuda::kMaxClusterSize + 1> resident_clusters;

  int max_cluster_size() const;
};

struct PlanRequest {
  Shape shape;
  bool backward;
  bool clips_norm;   // by the norm of the recurrent gradient, which is taken over the team at every step
  bool projects;     // proj_size
  bool allows_tf32;  // float32 products may be tf32
  // "block", "cluster", "grid", "stepwise" or "matmul": that or an error. Empty: the fastest of those that are safe.
  // Options may follow, each if it matters: "grid:blocks=64,samples=8,cluster=8", blocks and samples of a team, blocks of a cluster
  // (1: no clusters). A grid has clusters in backward alone: with `cluster` the options are backward's, and forward is the best grid.
  std::string wanted;
  // Also those whose blocks wait for each other, where no run on such a device has been committed (FASTRNN_PLANS=all).
  bool all_plans;
};

struct StepCost {
  const char* name;
  double us;
};

struct Plan {
  Team team;
  Arithmetic arithmetic;
  int batch_tiles;                // kN: 8 samples each
  cuda::Tiling tiling;            // of the first launch
  int num_teams;                  // slices times directions
  int teams_at_once;              // two-level: of one launch
  int64_t part_bytes;             // two-level: of a team, between its clusters
  int64_t shared_bytes;           // of a block
  bool scatters;                  // backward: exchanges by reduce-scatter, else by all-gather
  int64_t exchange_bytes;         // that a block receives at a step; 0: no other block sends
  double step_us;                 // predicted
  std::array<StepCost, 6> costs;  // what it is made of, the largest first
  // Predicted, before the first step: the launch, the weights that stay on the chip, counters. 0 where all of that is a step's.
  double start_us;

  double total_us(int64_t steps) const { return start_us + double(steps) * step_us; }

  // A grid of clusters: exchanges within each, then between them (cuda/two_level.cuh).
  bool is_two_level() const { return team == Team::kGrid && tiling.cluster_size > 1; }
};

// Throws std::invalid_argument with the reason where the wanted plan does not run this.
Plan make_plan(const PlanRequest& request, const DeviceLimits& device);

// All that could run it, the fastest over all steps first.
std::vector<Plan> all_plans(const PlanRequest& request, const DeviceLimits& device);

// What bounds a step: its costs, the largest first.
std::string bound(const Plan& plan);

// A sentence: the plan, its division of the work and the prediction.
std::string describe(const Plan& plan);

// Whether a committed run on such a device has shown plans whose blocks wait for each other to be right and free of hangs.
bool waits_are_proven(const DeviceLimits& device);

}  // namespace fastrnn
