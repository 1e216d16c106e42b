// How a launch divides a layer's recurrence, decided by plan.cpp and read by the kernels; and the scratch memory it needs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileBatch = 8;  // samples that one matrix instruction multiplies with
constexpr int kMaxClusterSize = 16;
constexpr int kMinArch = 80, kClusterMinArch = 90;  // what the teams' instructions need: 80 for compute capability 8.0

// What backward does in a launch of one step whose gradient norm all blocks have to know before the cell can run.
enum class Phase : int { kWhole = 0, kUntilNorm = 1, kFromNorm = 2 };

// Registers of a thread that hold weights in forward: what the rest of the kernel leaves free.
constexpr int forward_registers(int batch_tiles, int gates) {
  if (batch_tiles == 1) return 112;
  return gates == 3 ? 64 : 80;
}

// In backward, the cluster team: how the gate gradients become the recurrent gradient (exchange.cuh). An all-gather brings every
// block [G*H] of the operand's elements a sample, a reduce-scatter [H] sums, which have four bytes.
constexpr bool scatters_gradients(int gates, int element_bytes) { return gates * element_bytes > 4; }
constexpr int kScatterTiles = 2;  // of 16 units, that a warp multiplies at once in a reduce-scatter
// The same there.
constexpr int scatter_registers(int batch_tiles, int gates, int element_bytes) {
  if (gates == 4) return batch_tiles == 2 ? 16 : element_bytes == 4 ? 80 : 112;
  return batch_tiles == 1 ? 96 : 32;
}

// And where the team is a grid of clusters.
constexpr int two_level_registers(int batch_tiles, int gates) { return batch_tiles == 2 ? 16 : gates == 3 ? 48 : 64; }
// Two tiles of an LSTM would take more registers than there are, without any weights in them.
constexpr int max_two_level_tiles(int gates) { return gates == 4 ? 1 : 2; }
constexpr int kMaxTeamClusters = 16;  // of such a team

struct Tiling {
  int team_size;     // blocks that hold the weights of one direction together, for one slice of the batch
  int cluster_size;  // blocks of the team that are a cluster together; 1: none are
  int num_slices;    // of the batch, kTileBatch * kN samples each
  int first_team;    // of this launch, in the order slice, direction
  int64_t grad_y_row, grad_y_direction;  // [H] numbers of grad_y from a row, or from a direction, to the next
  int unit_warps;                        // warps that own different units; unit_warps * splits = kWarps
  int splits;                            // warps that share the columns of the weights of the same units
  int chunks;  // of columns, a warp's share; in a reduce-scatter of all its tiles, kScatterTiles after kScatterTiles
  int shared_chunks;  // how many of them, after those in registers, stay in shared memory; the rest is read at each step
  // Two-level (two_level.cuh): clusters of the team; warps that multiply different tiles, of which `splits` share the columns.
  int num_clusters, tile_warps;
  // Steps of this launch in processing order, [begin, end), from the first of the stage. Backward counts from the last step of all,
  // and has a turn more than steps: it brings the gradient of the state before them.
  int begin, end;
  bool persistent;  // the blocks of a team wait for each other, else each launch runs one step
  Phase phase;
};

constexpr int kCounterBytes = 128;  // a cache line each
constexpr int kCounters = 2;  // one for the operand, one for sums; two-level, of the blocks of a row (two_level.cuh)

// What backward leaves of a norm that is recorded and nothing else: over the units of each warp, 16 of them, the sum of squares
// of each sample of a slice at each of its steps that exists. About H / 2 bytes a step and sample.
struct SquareSums {
  double* squares;  // [D, num_slices, num_steps, num_warps, slice_size]; nullptr: there are none
  int64_t num_slices, num_steps, num_warps, slice_size;
};

// Who has a place in the slices.
struct OrderedSample {
  int index, length;  // in the batch; in steps
};

// Scratch of one call, cut out of one buffer. S slices, at most those of kTileBatch samples; E bytes an element.
struct Workspace {
  void* exchange;   // [S, D, 2, kN, K padded, 8]  the operand, by parity of the turn (team: grid)
  void* parts;      // acc [teams at once, 2, team, tiles of a block, kN, 32, 4]  of dh (two_level.cuh)
  void* carried_h;  // acc [D, B, H]               between launches
  void* carried_c;  // acc [D, B, H]
  double* norms;    // [S, D, 2, team, 8 * kN]     partial squares of the recurrent gradient that is clipped
  SquareSums sums;
  OrderedSample* order;  // [B]                       by falling length; nullptr: the batch's own order
  void* bias;            // acc [S, D, columns]         partial sums of grad_bias
  unsigned* counters;    // [teams, cluster, kCounters, 32]  how many blocks have published
};

}  // namespace fastrnn::cuda
