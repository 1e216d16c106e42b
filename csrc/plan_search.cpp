// Which plan runs a request: the fastest of the candidates, or the one that is asked for.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "plan_candidates.h"

namespace fastrnn {
namespace {

using cuda::kTileBatch;
using cuda::kWarps;

// Plans, the fastest first, and why other teams have none.
struct Search {
  std::vector<Plan> plans;
  std::map<Team, std::string> reasons;
};

constexpr const char* kBuiltForOlder = "fastrnn was built for older architectures alone (TORCH_CUDA_ARCH_LIST)";

// What keeps the team kernels from running this at all; empty where nothing does.
std::string only_matmul_because(const PlanRequest& request, const DeviceLimits& device) {
  const Shape& shape = request.shape;
  if (request.projects) return "proj_size runs with the matmul plan alone";
  if (device.major < 8) return "it needs compute capability 8.0 or later";
  if (device.compiled_arch == 0) return "fastrnn was not built for this GPU (TORCH_CUDA_ARCH_LIST)";
  if (device.compiled_arch < cuda::kMinArch) return kBuiltForOlder;
  // Their indices within a step are 32 bits wide.
  if (shape.steps >= INT32_MAX || shape.batch > INT32_MAX - 64 || shape.hidden_size > INT32_MAX / 64)
    return "steps, batch or hidden_size do not fit in 32 bits";
  return "";
}

// What a plan has to be (PlanRequest: wanted).
struct Wanted {
  std::string team;
  std::optional<int> blocks, samples, cluster;

  bool has_options() const { return blocks || samples || cluster; }
  bool is(Team a_team) const { return team.empty() || team == team_name(a_team); }
  bool is(const Plan& plan, bool backward) const {
    if (plan.team == Team::kGrid && cluster && !backward) return true;
    return blocks.value_or(plan.tiling.team_size) == plan.tiling.team_size &&
           samples.value_or(samples_of(plan)) == samples_of(plan) &&
           cluster.value_or(plan.tiling.cluster_size) == plan.tiling.cluster_size;
  }
  static int samples_of(const Plan& plan) { return plan.batch_tiles * kTileBatch; }
};

// What could have been asked for, in the order of its numbers.
using Options = std::tuple<int, int, int>;  // blocks, samples, cluster
Options options_of(const Plan& plan) {
  return {plan.tiling.team_size, Wanted::samples_of(plan), plan.tiling.cluster_size};
}
std::string list(const std::set<Options>& options) {
  constexpr size_t kMostNamed = 8;
  std::ostringstream text;
  text << "there are";
  size_t count = 0;
  for (const auto& [blocks, samples, cluster] : options) {
    if (count++ == kMostNamed) break;
    text << " blocks=" << blocks << ",samples=" << samples << ",cluster=" << cluster;
  }
  if (options.size() > kMostNamed) text << " and " << options.size() - kMostNamed << " more";
  return text.str();
}

Wanted parse_wanted(const std::string& text) {
  Wanted wanted;
  const size_t colon = text.find(':');
  wanted.team = text.substr(0, colon);
  for (size_t begin = colon; begin < text.size();) {
    const size_t end = std::min(text.find(',', ++begin), text.size());
    const std::string option = text.substr(begin, end - begin);
    const size_t equals = option.find('=');
    const std::string name = option.substr(0, equals), value = equals < option.size() ? option.substr(equals + 1) : "";
    const bool is_number = !value.empty() && value.size() < 6 && value.find_first_not_of("0123456789") == value.npos;
    std::optional<int>* place = name == "blocks"    ? &wanted.blocks
                                : name == "samples" ? &wanted.samples
                                : name == "cluster" ? &wanted.cluster
                                                    : nullptr;
    if (!place || !is_number || *place)
      throw std::invalid_argument(
          "plan is \"" + text + "\", with \"" + option +
          "\" where \"blocks\", \"samples\" or \"cluster\" was expected, once each, '=' and a number");
    *place = std::stoi(value);
    begin = end;
  }
  return wanted;
}

Search search(const PlanRequest& request, const DeviceLimits& device) {
  Search found;
  const Wanted wanted = parse_wanted(request.wanted);
  std::map<Team, std::set<Options>> others;
  const std::string only_matmul = only_matmul_because(request, device);
  const bool is_double = request.shape.scalar == ScalarKind::kDouble;
  const bool waits = request.all_plans || !request.wanted.empty() || waits_are_proven(device);
  std::vector<Candidate> candidates = {{Team::kBlock, 1, 1}};
  for (int tiles : {1, 2}) {
    candidates.push_back({Team::kStepwise, tiles, 0});
    for (int size : {2, 4, 8, 16})
      if (size <= device.max_cluster_size()) candidates.push_back({Team::kCluster, tiles, size});
    for (int size = device.multiprocessors; size > 1; size /= 2) candidates.push_back({Team::kGrid, tiles, size});
    for (int size : {2, 4, 8, 16})
      for (int unit_warps = 1; unit_warps <= kWarps; unit_warps *= 2)
        if (request.backward && !is_double && !request.shape.is_stack() &&
            tiles <= cuda::max_two_level_tiles(num_gates(request.shape.cell)) && size <= device.max_cluster_size() &&
            device.compiled_arch >= cuda::kClusterMinArch)
          candidates.push_back({Team::kGrid, tiles, 0, size, unit_warps});
  }
  if (device.max_cluster_size() == 0)
    found.reasons[Team::kCluster] = only_matmul.empty() ? "the device has no thread block clusters" : only_matmul;
  for (const Candidate& candidate : candidates) {
    const Team team = candidate.team;
    const bool waits_for_blocks = team == Team::kCluster || team == Team::kGrid;
    if (!wanted.is(team)) continue;
    if (!only_matmul.empty()) {
      found.reasons[team] = only_matmul;
    } else if (waits_for_blocks && !waits) {
      found.reasons[team] =
          "not yet shown to be free of hangs on this architecture, FASTRNN_PLANS=all allows it nevertheless";
    } else if (team == Team::kCluster && device.compiled_arch < cuda::kClusterMinArch) {
      found.reasons[team] = kBuiltForOlder;
    } else if (team == Team::kCluster && is_double) {
      found.reasons[team] = "float64 has no cluster kernels";
    } else {
      auto [plan, reason] = consider(request, device, candidate);
      if (plan && wanted.is(*plan, request.backward)) {
        found.plans.push_back(*plan);
      } else if (plan) {
        others[team].insert(options_of(*plan));
      } else {
        // of a grid that is no grid of clusters, where there is one
        if (candidate.cluster_size > 1)
          found.reasons.try_emplace(team, reason);
        else
          found.reasons[team] = reason;
      }
    }
  }
  for (const auto& [team, options] : others) found.reasons[team] = list(options);
  if (request.shape.is_stack()) {
    found.reasons.try_emplace(Team::kMatmul, "it runs one layer at a time");
  } else if (wanted.is(Team::kMatmul) && !wanted.has_options()) {
    found.plans.push_back(matmul_plan(request, device));
  }
  if (wanted.has_options()) found.reasons.try_emplace(Team::kMatmul, "it has no blocks, samples or clusters to choose");
  const int64_t steps = request.shape.is_stack() ? request.shape.chunk : request.shape.steps;
  std::stable_sort(found.plans.begin(), found.plans.end(),
                   [&](const Plan& a, const Plan& b) { return a.total_us(steps) < b.total_us(steps); });
  return found;
}

}  // namespace

// None yet: no run of benchmarks/gpu_check.sh has been committed.
bool waits_are_proven(const DeviceLimits&) { return false; }

std::vector<Plan> all_plans(const PlanRequest& request, const DeviceLimits& device) {
  return search(request, device).plans;
}

Plan make_plan(const PlanRequest& request, const DeviceLimits& device) {
  const Search found = search(request, device);
  if (!found.plans.empty()) return found.plans.front();
  for (const auto& [team, reason] : found.reasons)
    if (parse_wanted(request.wanted).team == team_name(team))
      throw std::invalid_argument("plan is \"" + request.wanted + "\", which cannot run this in " +
                                  (request.backward ? "backward" : "forward") + ": " + reason);
  throw std::invalid_argument("plan is \"" + request.wanted +
                              "\", expected \"block\", \"cluster\", \"grid\", \"stepwise\" or \"matmul\"");
}

}  // namespace fastrnn
