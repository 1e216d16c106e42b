// What a plan costs, and how it is told; plan_search.cpp chooses.
#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "plan_candidates.h"

namespace fastrnn {
namespace {

using cuda::kTileBatch;
using cuda::kWarps;

// The cost of a step, in microseconds. H100 SXM at 1.755 GHz; sources: research on published microbenchmarks, to be replaced by
// what benchmarks/gpu_check.sh measures. One-way costs of handing h on:
constexpr double kBlockSync = 0.05;    // two __syncthreads
constexpr double kClusterSync = 0.20;  // push to shared memory of peers, mbarrier wait
constexpr double kGridSync = 0.75;     // release/acquire counter in L2
constexpr double kLaunchSync = 2.1;    // kernel boundary on a stream
constexpr double kMatmulSync = 6;      // a small product of torch's: dispatch on the host, which the stream waits for
// Sums of the splits and the cell, up to the first push, with one and with two tiles of samples: the stall counts of the machine
// code (benchmarks/results/instructions.md, "Beside the product"). Backward `after_parts`, which are added beside it, has no splits
// to add before the cell.
struct PointwiseCosts {
  double forward[2], backward[2], after_parts[2];
};
constexpr PointwiseCosts kRnnPointwise{{0.5, 0.75}, {0.48, 0.58}, {0.28, 0.42}};
constexpr PointwiseCosts kLstmPointwise{{0.52, 0.8}, {0.64, 0.9}, {0.5, 0.64}};
constexpr PointwiseCosts kGruPointwise{{0.65, 1.1}, {0.54, 0.72}, {0.38, 0.6}};
// A block's part of a sum, added ("parts" in the same table).
constexpr double kPart[] = {0.012, 0.015};
constexpr double kMatmulCell = 0.15;  // in a kernel of its own, whose launch is counted apart
constexpr double kClock = 1755;       // cycles a microsecond
// The norm of the recurrent gradient at a step, beside the exchange of its parts: squares, the sum over the lanes of a warp, over the
// warps of a block, and over the lanes that have loaded the parts (team.cuh); then the loads, of eight parts from shared memory or of
// 32 from L2. Reckoned from the latencies of benchmarks/step_time.py, some 600 cycles.
constexpr double kNorm = 0.35, kNormPartsShared = 0.03, kNormPartsL2 = 0.16;
// Before the first step: one more launch, and, for a cooperative launch and for the clearing of counters before it, another each.
constexpr double kClearing = kLaunchSync, kCooperation = kLaunchSync;
// Bytes or multiply-adds a cycle and multiprocessor.
constexpr double kClusterBytes = 14, kL2Bytes = 36, kSharedBytes = 128;
constexpr double kTensor16Rate = 0.62 * 2048, kTf32Rate = 0.62 * 1024, kFloatRate = 128, kDoubleRate = 64;
constexpr double kMatmulShare = 0.6;  // of those, that a product of a large batch has

constexpr int64_t kPartsBytes =
    16 << 20;  // of a launch of two-level teams, unless one has more; as fastrnn/ops.py has it

// What operand.cuh knows of each arithmetic; product.cuh, forward.cuh and exchange.cuh of registers.
struct OperandFacts {
  int element_bytes;
  int chunk;        // columns
  int chunk_bytes;  // of a tile of 16 rows
  bool in_registers;
  double rate;
};

OperandFacts facts_of(Arithmetic arithmetic, ScalarKind scalar) {
  if (arithmetic == Arithmetic::kTensor16) return {2, 32, 1024, true, kTensor16Rate};
  if (arithmetic == Arithmetic::kTf32) return {4, 16, 1024, true, kTf32Rate};
  if (scalar == ScalarKind::kDouble) return {8, 2, 256, false, kDoubleRate};
  return {4, 4, 256, false, kFloatRate};
}

struct KernelFacts {
  int64_t columns;  // K: rows of the operand
  int units;        // of a warp
  int tiles;        // of a warp
  int register_chunks;
};

// Whether backward exchanges sums of the product in place of its operand.
bool scatters(const PlanRequest& request, Team team, const OperandFacts& operand) {
  return request.backward && team == Team::kCluster &&
         cuda::scatters_gradients(num_gates(request.shape.cell), operand.element_bytes);
}

KernelFacts kernel_of(const PlanRequest& request, const Candidate& candidate, const OperandFacts& operand) {
  const Team team = candidate.team;
  const int batch_tiles = candidate.batch_tiles;
  const int gates = num_gates(request.shape.cell);
  const bool lstm = gates == 4;
  KernelFacts facts{};
  int registers = 0;
  if (scatters(request, team, operand)) {
    facts = {0, 16, cuda::kScatterTiles, 0};  // columns: the gates of the block's units
    registers = cuda::scatter_registers(batch_tiles, gates, operand.element_bytes);
  } else if (candidate.is_two_level()) {
    facts = {0, 16, cuda::kScatterTiles, 0};  // columns: the gates of the cluster's units
    registers = cuda::two_level_registers(batch_tiles, gates);
  } else if (request.backward) {
    facts = {gates * request.shape.hidden_size, 16, 1, 0};
    registers = batch_tiles == 1 ? 48 : 0;
  } else {
    const int groups = lstm && team == Team::kBlock ? 2 : 1;
    facts = {request.shape.hidden_size, groups * (lstm ? 8 : 16), groups * (lstm ? 2 : gates), 0};
    registers = cuda::forward_registers(batch_tiles, gates);
  }
  if (operand.in_registers) facts.register_chunks = registers / 8 / facts.tiles;
  return facts;
}

const PointwiseCosts& pointwise_of(CellKind cell) {
  switch (num_gates(cell)) {
    case 4: return kLstmPointwise;
    case 3: return kGruPointwise;
    default: return kRnnPointwise;
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, 128) * 128; }

// Two-level: tiles that a block multiplies, those of the blocks of the same number in all clusters.
int64_t tiles_of_row(const cuda::Tiling& tiling) { return int64_t{tiling.num_clusters} * tiling.unit_warps; }

// Shared memory beside the weights: the structs Shared of team.cuh, cluster.cuh, exchange.cuh and two_level.cuh, and ForwardShared.
int64_t fixed_shared(const Plan& plan, const KernelFacts& kernel, const OperandFacts& operand) {
  const cuda::Tiling& tiling = plan.tiling;
  const Team team = plan.team;
  const int batch_tiles = plan.batch_tiles;
  const int64_t rows = ceil_div(kernel.columns, operand.chunk) * operand.chunk, samples = batch_tiles * kTileBatch;
  const bool is_cluster = team == Team::kCluster || plan.is_two_level();
  const int buffers = !plan.scatters && (team == Team::kBlock || is_cluster) ? 2 : 1;
  int64_t bytes = aligned(buffers * samples * rows * operand.element_bytes);
  bytes += aligned(tiling.unit_warps * samples * 8);
  if (is_cluster) bytes += aligned(4 * 8) + aligned(2 * tiling.cluster_size * samples * 8);
  if (plan.scatters) return bytes + aligned(int64_t{2} * tiling.team_size * tiling.unit_warps * 16 * samples * 4);
  if (plan.is_two_level()) bytes += tiles_of_row(tiling) * 16 * samples * 4;
  const int acc_bytes = std::max(operand.element_bytes, 4);
  const int64_t num_owners = plan.is_two_level() ? tiling.tile_warps : tiling.unit_warps;
  return bytes + aligned((tiling.splits - 1) * num_owners * batch_tiles * kernel.tiles * 32 * 4 * acc_bytes);
}

// Of a step, without the exchange of what the blocks have summed.
double norm_us(const Plan& plan) {
  const cuda::Tiling& tiling = plan.tiling;
  switch (plan.team) {
    case Team::kBlock: return kNorm;
    case Team::kCluster: return kNorm + ceil_div(tiling.team_size, 8) * kNormPartsShared;
    default:
      if (!plan.is_two_level()) return kNorm + ceil_div(tiling.team_size, 32) * kNormPartsL2;
      return kNorm + ceil_div(tiling.cluster_size, 8) * kNormPartsShared +
             ceil_div(tiling.num_clusters, 8) * kNormPartsL2;
  }
}

Arithmetic arithmetic_of(const PlanRequest& request) {
  switch (request.shape.scalar) {
    case ScalarKind::kHalf:
    case ScalarKind::kBfloat16: return Arithmetic::kTensor16;
    case ScalarKind::kFloat: return request.allows_tf32 ? Arithmetic::kTf32 : Arithmetic::kFma;
    default: return Arithmetic::kFma;
  }
}

}  // namespace

std::pair<std::optional<Plan>, std::string> consider(const PlanRequest& request, const DeviceLimits& device,
                                                     const Candidate& candidate) {
  const Arithmetic arithmetic = arithmetic_of(request);
  const Shape& shape = request.shape;
  const Team team = candidate.team;
  const OperandFacts operand = facts_of(arithmetic, shape.scalar);
  KernelFacts kernel = kernel_of(request, candidate, operand);
  const int64_t num_warps = ceil_div(shape.hidden_size, kernel.units);  // of different units, in a team
  Plan plan{};
  plan.team = team;
  plan.arithmetic = arithmetic;
  plan.batch_tiles = candidate.batch_tiles;
  plan.scatters = scatters(request, team, operand);
  cuda::Tiling& tiling = plan.tiling;
  tiling.unit_warps = candidate.unit_warps;
  tiling.cluster_size = candidate.cluster_size;
  while (candidate.max_team_size > 0 && ceil_div(num_warps, tiling.unit_warps) > candidate.max_team_size) {
    tiling.unit_warps *= 2;
    if (tiling.unit_warps > kWarps) {
      std::ostringstream why;
      why << "hidden_size " << shape.hidden_size << " has more units than " << candidate.max_team_size << " block"
          << (candidate.max_team_size > 1 ? "s" : "") << " can own";
      return {std::nullopt, why.str()};
    }
  }
  // No block is without units: it would not keep up with the others.
  tiling.team_size = static_cast<int>(ceil_div(num_warps, tiling.unit_warps));
  tiling.splits = kWarps / tiling.unit_warps;
  if (team == Team::kCluster) tiling.cluster_size = tiling.team_size;
  if (candidate.is_two_level()) {
    // Here there may be such blocks: they send zeros.
    const int64_t clusters = ceil_div(tiling.team_size, tiling.cluster_size);
    if (clusters < 2 || clusters > cuda::kMaxTeamClusters)
      return {std::nullopt, "hidden_size " + std::to_string(shape.hidden_size) + " would need " +
                                std::to_string(clusters) + " clusters of " + std::to_string(tiling.cluster_size) +
                                " blocks, 2 to " + std::to_string(cuda::kMaxTeamClusters) + " can be a team"};
    tiling.num_clusters = static_cast<int>(clusters);
    tiling.team_size = tiling.num_clusters * tiling.cluster_size;
    kernel.columns = int64_t{num_gates(shape.cell)} * tiling.cluster_size * tiling.unit_warps * kernel.units;
    // Few tiles have several warps each, which share the columns.
    const int64_t groups = ceil_div(tiles_of_row(tiling), kernel.tiles);
    tiling.splits = 1;
    while (2 * tiling.splits * groups <= kWarps) tiling.splits *= 2;
    tiling.tile_warps = kWarps / tiling.splits;
    tiling.chunks = static_cast<int>(ceil_div(groups, tiling.tile_warps) *
                                     ceil_div(ceil_div(kernel.columns, operand.chunk), tiling.splits));
    plan.part_bytes =
        2 * int64_t{tiling.team_size} * tiles_of_row(tiling) * candidate.batch_tiles * 16 * kTileBatch * 4;
  } else if (plan.scatters) {
    kernel.columns = int64_t{num_gates(shape.cell)} * tiling.unit_warps * kernel.units;
    const int64_t groups = ceil_div(ceil_div(num_warps, kWarps), kernel.tiles);
    tiling.chunks = static_cast<int>(groups * ceil_div(kernel.columns, operand.chunk));
  } else {
    tiling.chunks = static_cast<int>(ceil_div(ceil_div(kernel.columns, operand.chunk), tiling.splits));
  }
  tiling.num_slices = static_cast<int>(ceil_div(shape.batch, int64_t{candidate.batch_tiles} * kTileBatch));
  tiling.persistent = team != Team::kStepwise;
  plan.num_teams = tiling.num_slices * static_cast<int>(shape.directions);

  const int64_t fixed = fixed_shared(plan, kernel, operand);
  const int64_t per_chunk = int64_t{kWarps} * kernel.tiles * operand.chunk_bytes;
  const int64_t room = std::max<int64_t>(0, (device.shared_per_block - fixed) / per_chunk);
  const int64_t missing = std::max(0, tiling.chunks - kernel.register_chunks);
  tiling.shared_chunks = team == Team::kStepwise ? 0 : static_cast<int>(std::min(missing, room));
  plan.shared_bytes = fixed + tiling.shared_chunks * per_chunk;
  if (plan.shared_bytes > device.shared_per_block) {
    std::ostringstream why;
    why << "a block would need " << plan.shared_bytes << " bytes of shared memory of " << device.shared_per_block;
    return {std::nullopt, why.str()};
  }
  const int64_t streamed_chunks = missing - tiling.shared_chunks;
  if (tiling.persistent && streamed_chunks > 0 && request.wanted.empty())
    return {std::nullopt, "the weights do not fit in registers and shared memory"};

  // Blocks that wait for each other run at the same time; more teams run one after another.
  int64_t at_once = std::max(1, device.multiprocessors / tiling.team_size);
  if (tiling.cluster_size > 1)
    at_once = device.resident_clusters[tiling.cluster_size] * tiling.cluster_size / tiling.team_size;
  if (at_once == 0)
    return {std::nullopt,
            "the device has no room for " +
                (candidate.is_two_level() ? std::to_string(tiling.team_size) + " blocks in clusters" : "a cluster") +
                " of " + std::to_string(tiling.cluster_size) + (candidate.is_two_level() ? "" : " blocks")};
  if (candidate.is_two_level()) {
    at_once = std::min(at_once, std::max<int64_t>(1, kPartsBytes / plan.part_bytes));
    plan.teams_at_once = static_cast<int>(std::min<int64_t>(plan.num_teams, at_once));
  }
  const double rounds = team == Team::kStepwise
                            ? std::max(1.0, double(plan.num_teams) * tiling.team_size / device.multiprocessors)
                            : double(ceil_div(plan.num_teams, at_once));
  if (team == Team::kGrid && tiling.team_size > device.multiprocessors)
    return {std::nullopt, "a team has more blocks than the device can run at once"};
  const double samples = candidate.batch_tiles * kTileBatch;
  const double columns = double(tiling.chunks) * operand.chunk;  // of a warp
  int64_t busy_warps = kWarps;
  if (plan.scatters) {
    // Few units have no tiles for all warps; the warps of a block are spread over four schedulers.
    const int64_t tiles_of_warp = tiling.chunks / ceil_div(kernel.columns, operand.chunk) * kernel.tiles;
    busy_warps = ceil_div(ceil_div(num_warps, tiles_of_warp), 4) * 4;
  }
  if (candidate.is_two_level()) {
    const int64_t groups = ceil_div(tiles_of_row(tiling), kernel.tiles);
    const int64_t of_warp = ceil_div(groups, tiling.tile_warps);
    busy_warps = ceil_div(ceil_div(groups, of_warp) * tiling.splits, 4) * 4;
  }
  const double received = plan.scatters ? double(tiling.team_size) * tiling.unit_warps * kernel.units * samples * 4
                                        : double(kernel.columns) * samples * operand.element_bytes;
  // Two-level: of a block's part for its row, which is as many as it receives of the others'.
  const double between_clusters = candidate.is_two_level() ? tiles_of_row(tiling) * kernel.units * samples * 4 : 0;
  if (tiling.team_size > 1) plan.exchange_bytes = static_cast<int64_t>(received + between_clusters);
  const PointwiseCosts& pointwise = pointwise_of(shape.cell);
  const int tile = candidate.batch_tiles - 1;
  plan.costs = {{
      {"multiply-adds", busy_warps * kernel.tiles * 16.0 * columns * samples / operand.rate / kClock},
      {"weights from shared memory",
       tiling.shared_chunks * double(per_chunk) * busy_warps / kWarps / kSharedBytes / kClock},
      {"weights from L2",
       (team == Team::kStepwise ? tiling.chunks : streamed_chunks) * double(per_chunk) / kL2Bytes / kClock},
      {"cell", (!request.backward                           ? pointwise.forward
                : plan.scatters || candidate.is_two_level() ? pointwise.after_parts
                                                            : pointwise.backward)[tile]},
      {"", 0},
      {"", 0},
  }};
  const int barriers = request.clips_norm ? 2 : 1;
  double hand_on = received / (tiling.cluster_size > 1 ? kClusterBytes : kL2Bytes) / kClock;
  if (plan.scatters)  // to add them; before the product
    hand_on += std::max(tiling.team_size * kPart[tile], received / kSharedBytes / kClock) + kBlockSync / 2;
  if (candidate.is_two_level()) hand_on += tiling.num_clusters * kPart[tile];
  switch (team) {
    case Team::kBlock: plan.costs[4] = {"barriers", kBlockSync}; break;
    case Team::kCluster: plan.costs[4] = {"cluster barrier and exchange", kClusterSync * barriers + hand_on}; break;
    case Team::kGrid:
      plan.costs[4] = {"grid barrier and exchange", kGridSync * barriers + hand_on};
      if (!candidate.is_two_level()) break;
      plan.costs[4].name = "cluster and grid barriers and exchange";
      plan.costs[4].us += kClusterSync * barriers + 2 * between_clusters / kL2Bytes / kClock + kBlockSync;
      break;
    default: plan.costs[4] = {"launch and exchange", kLaunchSync / rounds * barriers + hand_on};
  }
  plan.costs[5] = {"sum of the norm", request.clips_norm ? norm_us(plan) : 0};
  std::stable_sort(plan.costs.begin(), plan.costs.end(),
                   [](const StepCost& a, const StepCost& b) { return a.us > b.us; });
  for (StepCost& cost : plan.costs) {
    cost.us *= rounds;
    plan.step_us += cost.us;
  }
  if (tiling.persistent) {
    // Every round is blocks that fetch their weights. A grid is as many launches as rounds.
    const double kept = std::min<int64_t>(tiling.chunks, kernel.register_chunks + tiling.shared_chunks);
    const double weights = kept * per_chunk * busy_warps / kWarps / kL2Bytes / kClock;
    const bool is_grid = team == Team::kGrid;
    plan.start_us = (is_grid ? rounds : 1) * kLaunchSync + rounds * weights;
    if (is_grid) plan.start_us += kClearing + rounds * kCooperation;
  }
  return {plan, ""};
}

Plan matmul_plan(const PlanRequest& request, const DeviceLimits& device) {
  const Shape& shape = request.shape;
  Plan plan{};
  plan.team = Team::kMatmul;
  plan.arithmetic = arithmetic_of(request) == Arithmetic::kTensor16 ? Arithmetic::kTensor16 : Arithmetic::kFma;
  plan.batch_tiles = 1;
  plan.tiling.cluster_size = 1;
  const int element_bytes = shape.scalar == ScalarKind::kDouble ? 8 : shape.scalar == ScalarKind::kFloat ? 4 : 2;
  const double gates = num_gates(shape.cell), states = double(shape.batch) * shape.directions * shape.hidden_size;
  const double whole_device = kClock * device.multiprocessors;
  const int products = request.projects ? 2 : 1;
  const double weights = double(shape.state_size) * shape.hidden_size * (gates + products - 1);
  const double rate = std::max(kMatmulShare * facts_of(plan.arithmetic, shape.scalar).rate, 1.0);
  const int kernels = (request.backward ? 2 : 1) + products - 1;
  // What the cell reads and writes: gates, the product, the state.
  const double cell_bytes = states * ((gates * 2 + 2) * element_bytes + (gates + 4) * 4);
  plan.costs = {{
      {"products", double(shape.batch) * shape.directions * weights / rate / whole_device},
      {"weights from L2", shape.directions * weights * element_bytes / kL2Bytes / whole_device},
      {"launches", kLaunchSync * kernels + kMatmulSync * products * shape.directions},
      {"cell", kMatmulCell + cell_bytes / kL2Bytes / whole_device},
      {"", 0},
      {"", 0},
  }};
  std::stable_sort(plan.costs.begin(), plan.costs.end(),
                   [](const StepCost& a, const StepCost& b) { return a.us > b.us; });
  for (const StepCost& cost : plan.costs) plan.step_us += cost.us;
  return plan;
}

int DeviceLimits::max_cluster_size() const {
  int size = cuda::kMaxClusterSize;
  while (size > 0 && resident_clusters[size] == 0) --size;
  return size;
}

const char* team_name(Team team) {
  constexpr const char* kNames[] = {"block", "cluster", "grid", "stepwise", "matmul"};
  return kNames[static_cast<int>(team)];
}

std::string bound(const Plan& plan) {
  std::ostringstream text;
  text.precision(2);
  for (const StepCost& cost : plan.costs)
    if (cost.us >= 0.01) text << (text.tellp() > 0 ? ", " : "") << cost.name << ' ' << std::fixed << cost.us;
  return text.str();
}

std::string describe(const Plan& plan) {
  std::ostringstream text;
  text.precision(2);
  text << team_name(plan.team);
  if (plan.team == Team::kMatmul) {
    text << ", torch's product and kernels for the cell at every step";
  } else {
    constexpr const char* kArithmetics[] = {"16-bit tensor cores", "tf32 tensor cores", "multiply-adds"};
    text << ", " << kArithmetics[static_cast<int>(plan.arithmetic)] << ", " << plan.num_teams << " team"
         << (plan.num_teams > 1 ? "s" : "") << " of " << plan.tiling.team_size << " block"
         << (plan.tiling.team_size > 1 ? "s" : "");
    if (plan.is_two_level()) text << " in clusters of " << plan.tiling.cluster_size;
    text << " for " << plan.batch_tiles * kTileBatch << " samples each, " << plan.shared_bytes / 1024
         << " KB of shared memory a block";
    if (plan.exchange_bytes > 0)
      text << ", "
           << (plan.is_two_level() ? "two-level exchange"
               : plan.scatters     ? "reduce-scatter"
                                   : "all-gather")
           << " of " << ceil_div(plan.exchange_bytes, 1024) << " KB a block and step";
  }
  text << ", predicted " << std::fixed << plan.step_us << " us a step (" << bound(plan) << ")";
  if (plan.start_us > 0) text << " and " << plan.start_us << " us before the first";
  return text.str();
}

}  // namespace fastrnn
