// What plan_search.cpp chooses from, and plan.cpp reckons.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "plan.h"

namespace fastrnn {

struct Candidate {
  Team team;
  int batch_tiles;
  int max_team_size;     // 0: any
  int cluster_size = 1;  // more: two-level
  int unit_warps = 1;    // at least; two-level: so many

  bool is_two_level() const { return cluster_size > 1; }
};

// The plan of a candidate, or why there is none.
std::pair<std::optional<Plan>, std::string> consider(const PlanRequest& request, const DeviceLimits& device,
                                                     const Candidate& candidate);

// Products by torch, which follow its own settings for tf32.
Plan matmul_plan(const PlanRequest& request, const DeviceLimits& device);

}  // namespace fastrnn
