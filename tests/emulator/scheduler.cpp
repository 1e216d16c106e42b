#include "grid.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>

#include "memory.h"

#if defined(EMULATOR_TSAN)
extern "C" void __tsan_switch_to_fiber(void*, unsigned);
extern "C" void* __tsan_get_current_fiber();
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastrnn::emulator {
namespace {

// Blocks that need not run together are started until so many threads run. ThreadSanitizer takes what one fiber does after
// the other for ordered, so there each thread has its own.
constexpr unsigned kUsualThreads = kThreadSanitizer ? 1u << 30 : 512;
constexpr unsigned kIdleRounds = 2000;  // in which all threads spin and nothing changes

FiberPool pool;
SharedMemory shared_memory;
Fiber outside;  // whoever called run()
const std::function<void()>* kernel;
std::exception_ptr error;

std::vector<Cluster> clusters;  // those that run
std::vector<Block> blocks;
std::vector<unsigned> waiting_clusters;  // those that have not begun
unsigned num_threads;                    // of a block
unsigned num_running;                    // clusters

std::vector<Fiber*> ready, spinning;
// In some launches one block of several, one warp of each block or one cluster of two is late: it runs where nobody else can.
std::vector<Fiber*> late;
enum class Late { kNone, kBlocks, kWarps, kClusters } who_is_late;
unsigned late_index, late_of;
unsigned jump;     // one choice in so many is at random, the others take who came last
unsigned landing;  // at one choice in so many a copy lands
uint64_t random_state;
uint64_t progress, progress_at_last_round;
unsigned idle_rounds;

IF_TSAN(char begin_order, end_order;)
IF_ASAN(Fiber* previous; const void* outside_stack; size_t outside_stack_bytes;)

// ------------------------------------------------------------------------------------------------------ switching

#if defined(__SANITIZE_ADDRESS__)
void finish_switch(void* fake_stack) {
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (previous == &outside) outside_stack = bottom, outside_stack_bytes = bytes;
}
#endif

void switch_to(Fiber& to) {
  Fiber& from = *running;
  if (&to != &outside) {
    threadIdx = to.thread_index;
    blockIdx = to.block->index;
  }
  if (&from == &to) return;
  running = &to;
  ++statistics.switches;
  IF_TSAN(if (&to == &outside) __tsan_release(&end_order);)
  IF_TSAN(__tsan_switch_to_fiber(to.tsan, /*no synchronisation*/ 1);)
  IF_ASAN(previous = &from; __sanitizer_start_switch_fiber(&from.fake_stack, &to == &outside ? outside_stack : to.stack,
                                                           &to == &outside ? outside_stack_bytes : kStackBytes);)
  switch_context(from.context, to.context);
  IF_ASAN(finish_switch(from.fake_stack);)
}

// Everyone waits, and for what.
std::string who_waits() {
  std::map<std::string, std::pair<unsigned, const Fiber*>> reasons;
  for (size_t i = 0; i < blocks.size() * num_threads; ++i) {
    const Fiber& fiber = pool[i];
    if (!fiber.waits_in) continue;
    std::ostringstream reason;
    reason << fiber.waits_in << " at " << fiber.site.file_name() << ':' << fiber.site.line();
    auto& [count, first] = reasons[reason.str()];
    if (count++ == 0) first = &fiber;
  }
  std::ostringstream text;
  for (const auto& [reason, who] : reasons)
    text << "; " << who.first << " wait for " << reason << ", first thread " << who.second->thread_index.x
         << " of block " << who.second->block->index.x;
  return text.str();
}

Fiber& take(std::vector<Fiber*>& from, size_t index) {
  Fiber* fiber = from[index];
  from[index] = from.back();
  from.pop_back();
  return *fiber;
}

bool is_late(const Fiber& fiber) {
  if (who_is_late == Late::kBlocks) return fiber.block->index.x % late_of == late_index;
  if (who_is_late == Late::kClusters) return fiber.block->index.x / fiber.block->cluster->size % late_of == late_index;
  return who_is_late == Late::kWarps && fiber.warp == &fiber.block->warps[late_index];
}

// Who goes on. Outside does, where nobody can.
Fiber& choose() {
  while (!error) {
    if (const size_t copies = num_copies_under_way(); copies && (ready.empty() || draw(landing) == 0)) {
      land_a_copy(draw(copies));
      continue;
    }
    if (!ready.empty()) {
      Fiber& next = !spinning.empty() && draw(64) == 0
                        ? take(spinning, draw(spinning.size()))
                        : take(ready, draw(jump) == 0 ? draw(ready.size()) : ready.size() - 1);
      if (!is_late(next)) return next;
      late.push_back(&next);
    } else if (!late.empty()) {
      return take(late, draw(late.size()));
    } else if (spinning.empty()) {
      set_error("deadlock" + who_waits());
    } else {
      idle_rounds = progress == progress_at_last_round ? idle_rounds + 1 : 0;
      progress_at_last_round = progress;
      if (idle_rounds > kIdleRounds) set_error("livelock" + who_waits());
      ready.swap(spinning);
    }
  }
  return outside;
}

// ------------------------------------------------------------------------------------------------ blocks and threads

uint3 unflatten(unsigned index, dim3 size) {
  return {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
}

void start_block(size_t slot, unsigned index) {
  Block& block = blocks[slot];
  block.index = unflatten(index, gridDim);
  block.alive = num_threads;
  block.barrier.arrived = 0;
  block.barrier.waiting = nullptr;
  block.mbarrier_waiters.clear();
  block.mbarrier_waiters.reserve(num_threads);
  block.shared_memory = shared_memory.of(slot, shared_bytes);
  block.warps.resize((num_threads + kWarpSize - 1) / kWarpSize);
  for (unsigned warp = 0; warp < block.warps.size(); ++warp) {
    const unsigned lanes = std::min(kWarpSize, num_threads - warp * kWarpSize);
    block.warps[warp].lanes = lanes == kWarpSize ? kFullMask : (1u << lanes) - 1;
    for (LaneGroup& group : block.warps[warp].groups) group = {};
    block.warps[warp].groups[0].mask = kFullMask;
  }
  const unsigned first = draw(num_threads);
  for (unsigned i = 0; i < num_threads; ++i) {
    const unsigned thread = (first + i) % num_threads;
    Fiber& fiber = pool[slot * num_threads + thread];
    fiber.thread_index = unflatten(thread, blockDim);
    fiber.lane = thread % kWarpSize;
    fiber.block = &block;
    fiber.warp = &block.warps[thread / kWarpSize];
    fiber.waits_in = nullptr;
    fiber.has_unfenced_init = false;
    ready.push_back(&fiber);
  }
}

void start_cluster(size_t slot, unsigned index) {
  Cluster& cluster = clusters[slot];
  cluster.alive = cluster.size * num_threads;
  cluster.barrier.arrived = 0;
  cluster.barrier.waiting = nullptr;
  for (unsigned rank = 0; rank < cluster.size; ++rank)
    start_block(slot * cluster.size + rank, index * cluster.size + rank);
}

void end_block(Block& block) {
  ++statistics.blocks;
  const size_t slot = &block - blocks.data();
  if (shared_memory.was_overrun(slot, shared_bytes))
    set_error("a thread has written past the end of the shared memory, of " + std::to_string(shared_bytes) + " bytes");
  if (is_written_to(block)) set_error("a peer's write is under way to a block that exits");
  if (block.cluster->alive > 0) return;
  if (waiting_clusters.empty()) {
    --num_running;
    return;
  }
  const unsigned next = waiting_clusters.back();
  waiting_clusters.pop_back();
  start_cluster(block.cluster - clusters.data(), next);
}

void end_thread() {
  const Unseen unseen;
  Fiber& fiber = self();
  Block& block = *fiber.block;
  Cluster& cluster = *block.cluster;
  ++statistics.threads;
  note_progress();
  if (has_overflown(fiber)) set_error("a thread's stack has overflown");
  --block.alive;
  --cluster.alive;
  // The others wait for those that are left.
  if (block.barrier.arrived && block.barrier.arrived == block.alive) leave(block.barrier);
  if (cluster.barrier.arrived && cluster.barrier.arrived == cluster.alive) leave(cluster.barrier);
  if (block.alive == 0) end_block(block);
}

// What a fiber does: one thread after the other.
void entry() {
  IF_ASAN(finish_switch(nullptr);)
  for (;;) {
    IF_TSAN(__tsan_acquire(&begin_order);)
    try {
      (*kernel)();
      end_cp_async();
    } catch (...) {
      if (!error) error = std::current_exception();
    }
    IF_TSAN(__tsan_release(&end_order);)
    if (!error) end_thread();
    if (num_running == 0) {
      switch_to(outside);
    } else {
      switch_to(choose());
    }
  }
}

}  // namespace

unsigned draw(unsigned end) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<unsigned>((random_state >> 32) * end >> 32);
}

void note_progress() { ++progress; }

void set_error(const std::string& what) {
  if (!error) error = std::make_exception_ptr(Error(what));
}

void fail_here(const std::string& what, Site site) {
  const Fiber& fiber = self();
  const auto place = [](uint3 index) {
    std::ostringstream text;
    text << index.x;
    if (index.y || index.z) text << ',' << index.y << ',' << index.z;
    return text.str();
  };
  throw Error("thread " + place(fiber.thread_index) + " of block " + place(fiber.block->index) + ", " +
              site.file_name() + ':' + std::to_string(site.line()) + ": " + what);
}

void wait(const char* what, Site site) {
  Fiber& fiber = self();
  fiber.waits_in = what;
  fiber.site = site;
  switch_to(choose());
  fiber.waits_in = nullptr;
}

void make_ready(Fiber& fiber) { ready.push_back(&fiber); }

void spin(const char* what, Site site) {
  spinning.push_back(&self());
  wait(what, site);
}

void maybe_switch() {
  if (ready.empty() || draw(4) > 0) return;
  ready.push_back(&self());
  std::swap(ready.back(), ready[draw(ready.size())]);
  switch_to(choose());
}

// ---------------------------------------------------------------------------------------------------------- running

void run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  gridDim = launch.grid_size;
  blockDim = launch.block_size;
  shared_bytes = launch.shared_bytes;
  kernel = &launch.kernel;
  error = nullptr;
  random_state = launch.seed * 0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d;
  for (int i = 0; i < 8; ++i) draw(1);
  jump = 1u << draw(7);
  landing = 1u << 2 * draw(8);
  const unsigned lateness = static_cast<unsigned>(launch.seed * 0xbf58476d1ce4e5b9 >> 40);
  who_is_late = lateness % 4 == 1 ? Late::kBlocks : lateness % 4 == 2 ? Late::kWarps : Late::kNone;
  progress = progress_at_last_round = idle_rounds = 0;
  num_threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned num_clusters = gridDim.x * gridDim.y * gridDim.z / launch.cluster_size;
  const unsigned usual = std::max(1u, kUsualThreads / (num_threads * launch.cluster_size));
  late_of = launch.cluster_size > 1 ? launch.cluster_size : 2;
  // Blocks of clusters that do not wait for each other are late as they are.
  if (lateness % 4 == 3 && launch.cluster_size > 1 && launch.all_resident) {
    who_is_late = Late::kClusters;
    late_of = 2;
  }
  if (who_is_late == Late::kWarps) late_of = (num_threads + kWarpSize - 1) / kWarpSize;
  late_index = lateness / 4 % late_of;
  num_running = launch.all_resident ? num_clusters : std::min(num_clusters, usual);

  blocks.resize(num_running * launch.cluster_size);
  clusters.resize(num_running);
  pool.grow(blocks.size() * num_threads, entry);
  ready.reserve(blocks.size() * num_threads);
  spinning.reserve(blocks.size() * num_threads);
  late.reserve(blocks.size() * num_threads);
  for (size_t slot = 0; slot < clusters.size(); ++slot) {
    Cluster& cluster = clusters[slot];
    cluster.size = launch.cluster_size;
    cluster.blocks.clear();
    for (unsigned rank = 0; rank < cluster.size; ++rank) {
      Block& block = blocks[slot * cluster.size + rank];
      block.cluster = &cluster;
      block.rank = rank;
      cluster.blocks.push_back(&block);
    }
  }
  waiting_clusters.resize(num_clusters);
  std::iota(waiting_clusters.begin(), waiting_clusters.end(), 0u);
  for (unsigned i = num_clusters; i > 1; --i) std::swap(waiting_clusters[i - 1], waiting_clusters[draw(i)]);
  for (size_t slot = 0; slot < clusters.size(); ++slot) {
    start_cluster(slot, waiting_clusters.back());
    waiting_clusters.pop_back();
  }

  ++statistics.launches;
  running = &outside;
  IF_TSAN(outside.tsan = __tsan_get_current_fiber(); __tsan_release(&begin_order);)
  switch_to(choose());
  IF_TSAN(__tsan_acquire(&end_order);)
  running = nullptr;
  if (!error) return;
  ready.clear();
  spinning.clear();
  late.clear();
  forget_copies();
  pool.clear();
  std::rethrow_exception(error);
}

}  // namespace fastrnn::emulator
