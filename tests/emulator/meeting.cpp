// Where threads wait for each other: barriers of a block, a warp or a cluster, and mbarriers.
#include <algorithm>
#include <cstring>

#include "grid.h"

namespace fastrnn::emulator {

bool arrive(Meeting& meeting, unsigned need, const char* what, Site site) {
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.site = site;
  } else if (meeting.site.line() != site.line() || (meeting.what != what && std::strcmp(meeting.what, what))) {
    fail(site, "divergent ", what, ": others have arrived from ", meeting.what, " at ", meeting.site.file_name(), ':',
         meeting.site.line());
  }
  if (++meeting.arrived == need) return true;
  Fiber& fiber = self();
  fiber.next = meeting.waiting;
  meeting.waiting = &fiber;
  wait(what, site);
  return false;
}

void leave(Meeting& meeting) {
  meeting.arrived = 0;
  ++meeting.generation;
  for (Fiber* fiber = meeting.waiting; fiber; fiber = fiber->next) make_ready(*fiber);
  meeting.waiting = nullptr;
  note_progress();
}

namespace {

// A meeting that orders memory accesses.
void sync(Meeting& meeting, unsigned need, const char* what, Site site) {
  IF_TSAN(char* order = &meeting.ordering[meeting.generation % 2]; __tsan_release(order);)
  if (arrive(meeting, need, what, site)) {
    leave(meeting);
    maybe_switch();
  }
  IF_TSAN(__tsan_acquire(order);)
}

}  // namespace

void sync_block(Site site) {
  ++statistics.arrivals;
  sync(self().block->barrier, self().block->alive, "__syncthreads", site);
}

int sync_block_or(int value, Site site) {
  Block& block = *self().block;
  const unsigned generation = block.barrier.generation;
  Vote& vote = block.votes[generation % 2];
  if (vote.generation != generation) vote = {generation, 0};
  vote.value |= value != 0;
  sync(block.barrier, block.alive, "__syncthreads_or", site);
  return vote.value;
}

void sync_cluster(Site site) {
  if (self().has_unfenced_init) fail(site, "cluster_sync after mbarrier_init without fence_mbarrier_init");
  sync(self().block->cluster->barrier, self().block->cluster->alive, "cluster_sync", site);
}

LaneGroup& lane_group(unsigned mask, const char* what, Site site) {
  Fiber& fiber = self();
  Warp& warp = *fiber.warp;
  if (mask & ~warp.lanes) fail(site, what, " names lanes that the warp does not have");
  if (!(mask >> fiber.lane & 1)) fail(site, what, " with a mask that leaves the calling lane out");
  LaneGroup* unused = nullptr;
  for (LaneGroup& group : warp.groups) {
    if (group.mask == mask) return group;
    if (!unused && group.meeting.arrived == 0 && &group != &warp.groups[0]) unused = &group;
  }
  if (!unused) fail(site, what, ": more than ", kLaneGroups, " lane masks at a time");
  unused->mask = mask;
  return *unused;
}

void sync_warp(unsigned mask, Site site) {
  LaneGroup& group = lane_group(mask, "__syncwarp", site);
  sync(group.meeting, static_cast<unsigned>(__builtin_popcount(mask)), "__syncwarp", site);
}

void wait_at_mbarrier(const void* word, Site site) {
  Fiber& fiber = self();
  fiber.waits_at = word;
  fiber.block->mbarrier_waiters.push_back(&fiber);
  wait("mbarrier_wait", site);
}

void wake_mbarrier_waiters(Block& block, const void* word) {
  const Unseen unseen;
  auto& waiters = block.mbarrier_waiters;
  const auto kept =
      std::partition(waiters.begin(), waiters.end(), [&](Fiber* fiber) { return fiber->waits_at != word; });
  for (auto fiber = kept; fiber != waiters.end(); ++fiber) make_ready(**fiber);
  waiters.erase(kept, waiters.end());
  note_progress();
}

Block& peer_of(const Block& block, unsigned rank) { return *block.cluster->blocks[rank]; }

}  // namespace fastrnn::emulator
