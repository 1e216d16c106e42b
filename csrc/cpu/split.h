// How a team of threads shares a recurrence. A pure function of sizes.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// One step of one direction: a product of `batch` rows with a packed matrix, and the cells.
struct StepShape {
  int64_t directions;
  int64_t steps;
  int64_t batch;
  int64_t unit_blocks;        // hidden units, in cache lines: the grain of a split by units
  int64_t vectors_per_block;  // vectors of the packed matrix that belong to a block
  int64_t num_k;              // rows of the packed matrix
  int64_t vector_bytes;
  int64_t l2_bytes;    // second-level cache of a core
  bool claims_panels;  // threads that share units take panels from each other
};

// Directions are worked on by disjoint teams (direction_teams = 2) or one after the other. A direction's team is
// row_groups x unit_groups threads. Row groups share nothing but the weights, of which each may have a copy, and never wait for each
// other, but the first that is done helps; the threads of a row group own disjoint hidden units of its samples and meet at every step,
// and may take panels of others' units before they do.
struct Split {
  int direction_teams = 1;
  int row_groups = 1;
  int unit_groups = 1;

  int team_size() const { return row_groups * unit_groups; }
  int threads() const { return direction_teams * team_size(); }
};

// Where a thread stands in a split.
struct Member {
  bool active;
  int direction_team;
  int row_group;
  int unit_group;
};

Split choose_split(const StepShape& shape, int num_threads);
Member member_of(const Split& split, int thread);

// The share of `group` in `count` things divided among `num_groups`.
struct Range {
  int64_t begin;
  int64_t end;
};
inline Range share_of(int64_t count, int64_t num_groups, int64_t group) {
  return {count * group / num_groups, count * (group + 1) / num_groups};
}

}  // namespace fastrnn::cpu
