// Runs a CUDA kernel's source as C++: one fiber per CUDA thread, all on one OS thread, under a seeded random scheduler.
//
// A fiber runs until it has to wait; then another goes on. Which one is the seed's choice, and so is when an asynchronous copy
// lands. Blocks of a cooperative launch or of one cluster are resident together; other blocks start in any order, a few at a
// time. Shared memory is poisoned. What cannot go on is an error that names thread, block and line: a deadlock, a livelock,
// threads of a warp or a block that meet at different barriers.
//
// This header is what the emulated intrinsics (include/intrinsics.cuh) are made of.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "context.h"

#if defined(EMULATOR_TSAN)
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define IF_TSAN(...) __VA_ARGS__
#else
#define IF_TSAN(...)
#endif

// Of the running thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace fastrnn::emulator {

using Site = std::source_location;

constexpr unsigned kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;
// What shared memory and the destination of a copy under way hold, repeated: a NaN as half, bfloat16, float and double.
constexpr uint16_t kPoison = 0x7ff3;

void poison(void* memory, size_t bytes);

// ThreadSanitizer looks away while one of these lives: the emulator's own bookkeeping is no race of the kernel's.
struct Unseen {
#if defined(EMULATOR_TSAN)
  Unseen() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Unseen() {
    AnnotateIgnoreReadsEnd("", 0);
    AnnotateIgnoreWritesEnd("", 0);
  }
  Unseen(const Unseen&) = delete;
#else
  ~Unseen() {}
#endif
};

// A mistake in the kernel, or in how it was launched.
struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

struct Fiber;
struct Block;

// Where threads wait for each other.
struct Meeting {
  const char* what = nullptr;
  Site site;
  unsigned arrived = 0;
  unsigned generation = 0;
  Fiber* waiting = nullptr;
  IF_TSAN(char ordering[2];)  // two: a thread that leaves late must not learn what others did after they left
};

// Threads of a warp that work together, by their mask. Each lane leaves the address of its arguments.
struct LaneGroup {
  unsigned mask;
  Meeting meeting;
  void* arguments[kWarpSize];
};

constexpr int kLaneGroups = 4;  // at a time

struct Warp {
  unsigned lanes;  // mask of those that exist
  LaneGroup groups[kLaneGroups];
};

struct Cluster {
  unsigned size = 0, alive = 0;
  Meeting barrier;
  std::vector<Block*> blocks;
};

// Of __syncthreads_or.
struct Vote {
  unsigned generation = ~0u;
  int value = 0;
};

struct Block {
  uint3 index;
  unsigned rank, alive;
  Cluster* cluster;
  Meeting barrier;
  Vote votes[2];  // by the barrier's generation
  std::vector<Warp> warps;
  unsigned char* shared_memory;
  std::vector<Fiber*> mbarrier_waiters;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  uint3 thread_index;
  unsigned lane;
  Block* block;
  Warp* warp;
  Fiber* next;                            // of those that wait in the same meeting
  const char* waits_in;                   // nullptr: runs or could run
  Site site;                              // where it waits
  const void* waits_at;                   // the mbarrier
  bool has_unfenced_init;                 // of an mbarrier
  std::vector<std::vector<Copy>> copies;  // by cp.async group, the last one still open
  unsigned char* stack;
  IF_TSAN(void* tsan;)
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack;
#endif
};

inline Fiber* running = nullptr;
inline size_t shared_bytes;  // of a block

#if defined(EMULATOR_TSAN)
__attribute__((no_sanitize("thread")))
#endif
inline Fiber& self() {
  return *running;
}

// Throws an Error that names the running thread.
[[noreturn]] void fail_here(const std::string& what, Site site);
template <typename... Parts>
[[noreturn]] void fail(Site site, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  fail_here(message.str(), site);
}

// ------------------------------------------------------------------------------------------------------- waiting

// True for the last of `need` threads, which then has to call leave(); the others return after that. Threads that come from
// different places at a time are an error.
bool arrive(Meeting& meeting, unsigned need, const char* what, Site site);
void leave(Meeting& meeting);

// A thread in a loop that waits for memory to change: others run first.
void spin(const char* what, Site site);
// May let others run first.
void maybe_switch();
// Something has happened that a spinning thread may wait for.
void note_progress();
// A random number below `end`.
unsigned draw(unsigned end);

void sync_block(Site site);
int sync_block_or(int value, Site site);
void sync_cluster(Site site);
void sync_warp(unsigned mask, Site site);

LaneGroup& lane_group(unsigned mask, const char* what, Site site);

// The lanes of `mask` meet; the last to arrive runs combine(arguments), with every lane's. It orders no memory accesses, as on
// the device: __syncwarp does.
template <typename T, typename Combine>
void collective(unsigned mask, T& mine, const char* what, Site site, Combine combine) {
  LaneGroup& group = lane_group(mask, what, site);
  group.arguments[self().lane] = &mine;
  const unsigned need = mask == kFullMask ? kWarpSize : static_cast<unsigned>(__builtin_popcount(mask));
  if (!arrive(group.meeting, need, what, site)) return;
  {
    const Unseen unseen;
    combine(reinterpret_cast<T* const(&)[kWarpSize]>(group.arguments));
  }
  leave(group.meeting);
}

// --------------------------------------------------------------------------------------------- shared memory, copies

// Refuses what does not lie in the block's shared memory, aligned.
void check_shared(const void* address, size_t bytes, size_t alignment, const char* what, Site site);

// An address in the cluster's shared memory: the block's rank plus one from bit 20 on, the offset below.
uint32_t cluster_address(const void* own, unsigned rank, Site site);

// Writes land in a peer's shared memory some time later, and then count for its mbarrier.
void store_to_peer(uint32_t to, uint32_t barrier, const void* value, size_t bytes, Site site);
void copy_to_peer(uint32_t to, uint32_t barrier, const void* from, size_t bytes, Site site);

void cp_async(void* to, const void* from, size_t bytes, bool valid, Site site);
void cp_async_commit();
void cp_async_wait(size_t pending_groups);

void mbarrier_init(uint64_t* word, unsigned count, Site site);
void mbarrier_arrive_and_expect(uint64_t* word, unsigned bytes, Site site);
// Waits, or returns false: whoever asks has to ask again.
bool mbarrier_try_wait(uint64_t* word, unsigned parity, Site site);

// -------------------------------------------------------------------------------------------------------- running

struct Launch {
  dim3 grid_size, block_size;
  size_t shared_bytes = 0;
  unsigned cluster_size = 1;
  bool all_resident = false;
  uint64_t seed = 0;
  std::function<void()> kernel;
};

struct Statistics {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0;
  uint64_t arrivals = 0;  // of threads at __syncthreads
  uint64_t queries = 0;   // of the runtime, about devices and kernels
};
inline Statistics statistics;

// Throws an Error for what goes wrong inside.
void run(const Launch& launch);

// For the emulator's own files.
void wait(const char* what, Site site);  // until make_ready
void make_ready(Fiber& fiber);
Block& peer_of(const Block& block, unsigned rank);
void wait_at_mbarrier(const void* word, Site site);
void wake_mbarrier_waiters(Block& block, const void* word);
void set_error(const std::string& what);
size_t num_copies_under_way();
void land_a_copy(unsigned which);
void forget_copies();
void end_cp_async();
bool is_written_to(const Block& block);

}  // namespace fastrnn::emulator
