// Asynchronous copies, mbarriers and the shared memory of a cluster.
//
// A copy's destination is poisoned when the copy begins: until it has landed nobody may look at it. Copies within a block
// (cp.async) land at once or when they are waited for. Writes to a peer land when the scheduler says so.
#include <atomic>
#include <cstring>

#include "grid.h"

#if defined(EMULATOR_TSAN)
extern "C" void __tsan_read_range(void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#endif

namespace fastrnn::emulator {
namespace {

// These files are not instrumented, so that the emulator's own bookkeeping is no race; what a kernel asks for is told here.
void note_read([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
  IF_TSAN(__tsan_read_range(const_cast<void*>(at), bytes);)
}
void note_write([[maybe_unused]] void* at, [[maybe_unused]] size_t bytes) { IF_TSAN(__tsan_write_range(at, bytes);) }

// ThreadSanitizer sees every memcpy.
void copy_unseen(void* to, const void* from, size_t bytes) {
  const Unseen unseen;
  std::memcpy(to, from, bytes);
}
void poison_unseen(void* to, size_t bytes) {
  const Unseen unseen;
  poison(to, bytes);
}

bool is_aligned(const void* address, size_t to) { return reinterpret_cast<uintptr_t>(address) % to == 0; }

// ------------------------------------------------------------------------------------------------------- mbarriers

// An mbarrier's 64 bits. The hardware's layout is secret, so nobody but these functions may look.
struct Phase {
  static constexpr uint64_t kTag = 0xba7;
  uint64_t tag : 12;
  uint64_t generation : 8;  // the phase's parity is its last bit
  uint64_t count : 11;      // arrivals that end a phase
  uint64_t pending : 11;    // arrivals that are missing
  int64_t bytes : 22;       // still expected
};
constexpr int64_t kMostBytes = (1 << 20) - 1;  // as PTX says
constexpr unsigned kMostArrivals = (1 << 11) - 1;

Phase read(const uint64_t* word) {
  Phase phase;
  std::memcpy(&phase, word, sizeof phase);
  return phase;
}

// Empty where all is well.
std::string change(Block& block, uint64_t* word, unsigned arrivals, int64_t expected, int64_t landed) {
  Phase phase = read(word);
  if (phase.tag != Phase::kTag) return "an mbarrier is used that is not initialised";
  if (arrivals > phase.pending) return "more arrivals at an mbarrier than its count";
  const int64_t bytes = phase.bytes + expected - landed;
  if (bytes > kMostBytes || bytes < -kMostBytes) return "an mbarrier's count of bytes overflows";
  phase.pending -= arrivals;
  phase.bytes = bytes;
  const bool ends = phase.pending == 0 && bytes == 0;
  if (ends) {
    ++phase.generation;
    phase.pending = phase.count;
  }
  std::memcpy(word, &phase, sizeof phase);
  if (ends) wake_mbarrier_waiters(block, word);
  return {};
}

// Tells ThreadSanitizer of an access that excludes plain ones, and that what came before it is seen by who waits.
void note_arrival([[maybe_unused]] uint64_t* word) {
  IF_TSAN(std::atomic_ref<uint64_t>(*word).load(std::memory_order_relaxed); __tsan_release(word);)
}

// ------------------------------------------------------------------------------------------------- writes to peers

constexpr uint32_t kRankShift = 20;

struct Remote {
  Block* block = nullptr;
  unsigned char* address = nullptr;
};

// The place of a cluster address, checked.
Remote remote(uint32_t address, size_t bytes, size_t alignment, const char* what, Site site) {
  const Cluster& cluster = *self().block->cluster;
  const uint32_t rank = (address >> kRankShift) - 1, offset = address & ((1u << kRankShift) - 1);
  if (rank >= cluster.size) fail(site, what, " is no address of the cluster's shared memory");
  if (offset + bytes > shared_bytes)
    fail(site, what, " ends at byte ", offset + bytes, " of a peer's shared memory, which has ", shared_bytes);
  if (offset % alignment) fail(site, what, " is not aligned to ", alignment, " bytes");
  Block* block = cluster.blocks[rank];
  if (block->alive == 0) fail(site, what, " is in a block that has exited");
  return {block, block->shared_memory + offset};
}

struct Push {
  Remote to, barrier;
  unsigned char value[16];  // of a store
  const void* from;         // of a copy, which may be read late
  size_t bytes;
  Site site;
};
std::vector<Push> pushes;

void push(uint32_t to, uint32_t barrier, const void* value, const void* from, size_t bytes, size_t alignment,
          Site site) {
  Push push{remote(to, bytes, alignment, "the destination", site),
            remote(barrier, 8, 8, "the peer's mbarrier", site),
            {},
            static_cast<const unsigned char*>(from),
            bytes,
            site};
  if (push.to.block != push.barrier.block) fail(site, "the destination and its mbarrier are in different blocks");
  auto* word = reinterpret_cast<uint64_t*>(push.barrier.address);
  if (read(word).tag != Phase::kTag) fail(site, "a push to a peer whose mbarrier is not initialised");
  if (value) std::memcpy(push.value, value, bytes);
  note_write(push.to.address, bytes);
  poison_unseen(push.to.address, bytes);
  note_arrival(word);  // whoever waits there sees what has been written
  {
    const Unseen unseen;
    pushes.push_back(std::move(push));
  }
  maybe_switch();
}

}  // namespace

size_t num_copies_under_way() { return pushes.size(); }

void land_a_copy(unsigned which) {
  const Unseen unseen;
  const Push push = pushes[which];
  pushes[which] = pushes.back();
  pushes.pop_back();
  copy_unseen(push.to.address, push.from ? push.from : push.value, push.bytes);
  const std::string wrong = change(*push.barrier.block, reinterpret_cast<uint64_t*>(push.barrier.address), 0, 0,
                                   static_cast<int64_t>(push.bytes));
  if (!wrong.empty())
    set_error(wrong + ", when a write landed that was pushed at " + push.site.file_name() + ':' +
              std::to_string(push.site.line()));
}

void forget_copies() { pushes.clear(); }

bool is_written_to(const Block& block) {
  for (const Push& push : pushes)
    if (push.to.block == &block) return true;
  return false;
}

void check_shared(const void* address, size_t bytes, size_t alignment, const char* what, Site site) {
  const auto* begin = static_cast<const unsigned char*>(address);
  const unsigned char* shared = self().block->shared_memory;
  if (begin < shared || begin + bytes > shared + shared_bytes) fail(site, what, " is not in the block's shared memory");
  if (!is_aligned(address, alignment)) fail(site, what, " is not aligned to ", alignment, " bytes");
}

uint32_t cluster_address(const void* own, unsigned rank, Site site) {
  check_shared(own, 1, 1, "the address", site);
  if (rank >= self().block->cluster->size) fail(site, "no block of rank ", rank, " in the cluster");
  return (rank + 1) << kRankShift |
         static_cast<uint32_t>(static_cast<const unsigned char*>(own) - self().block->shared_memory);
}

void store_to_peer(uint32_t to, uint32_t barrier, const void* value, size_t bytes, Site site) {
  push(to, barrier, value, nullptr, bytes, bytes, site);
}

void copy_to_peer(uint32_t to, uint32_t barrier, const void* from, size_t bytes, Site site) {
  check_shared(from, bytes, 16, "the source", site);
  if (bytes == 0 || bytes % 16) fail(site, "a bulk copy of ", bytes, " bytes, expected a multiple of 16");
  note_read(from, bytes);
  push(to, barrier, nullptr, from, bytes, 16, site);
}

void mbarrier_init(uint64_t* word, unsigned count, Site site) {
  check_shared(word, 8, 8, "the mbarrier", site);
  if (count == 0 || count > kMostArrivals) fail(site, "an mbarrier for ", count, " arrivals");
  note_write(word, 8);
  const Phase phase{Phase::kTag, 0, count, count, 0};
  std::memcpy(word, &phase, sizeof phase);
  self().has_unfenced_init = true;
}

void mbarrier_arrive_and_expect(uint64_t* word, unsigned bytes, Site site) {
  check_shared(word, 8, 8, "the mbarrier", site);
  note_arrival(word);
  const std::string wrong = change(*self().block, word, 1, bytes, 0);
  if (!wrong.empty()) fail(site, wrong);
  maybe_switch();
}

bool mbarrier_try_wait(uint64_t* word, unsigned parity, Site site) {
  check_shared(word, 8, 8, "the mbarrier", site);
  if (parity > 1) fail(site, "an mbarrier's parity is ", parity);
  Phase phase = read(word);
  if (phase.tag != Phase::kTag) fail(site, "waits at an mbarrier that is not initialised");
  if (phase.generation % 2 == parity) {
    if (draw(8) == 0) return false;
    wait_at_mbarrier(word, site);
    const unsigned passed = (read(word).generation - phase.generation) & 0xff;
    if (passed != 1) fail(site, "the mbarrier went on by ", passed, " phases while a thread waited for one");
  }
  IF_TSAN(std::atomic_ref<uint64_t>(*word).load(std::memory_order_relaxed); __tsan_acquire(word);)
  return true;
}

// ---------------------------------------------------------------------------------------------------------- cp.async

namespace {
void land(const Copy& copy) {
  note_write(copy.to, copy.bytes);
  if (copy.from) {
    note_read(copy.from, copy.bytes);
    copy_unseen(copy.to, copy.from, copy.bytes);
  } else {
    const unsigned char zeros[16] = {};
    copy_unseen(copy.to, zeros, copy.bytes);
  }
}
}  // namespace

void cp_async(void* to, const void* from, size_t bytes, bool valid, Site site) {
  check_shared(to, bytes, bytes, "the destination of cp.async", site);
  if (valid && !is_aligned(from, bytes)) fail(site, "the source of cp.async is not aligned to ", bytes, " bytes");
  const Copy copy{to, valid ? from : nullptr, bytes};
  if (draw(2) == 0) {
    land(copy);
  } else {
    note_write(to, bytes);
    poison_unseen(to, bytes);
  }
  // Either way it is the waited-for copy that counts.
  const Unseen unseen;
  auto& groups = self().copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}

void cp_async_commit() {
  const Unseen unseen;
  auto& groups = self().copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void cp_async_wait(size_t pending_groups) {
  auto& groups = self().copies;
  const size_t committed = groups.empty() ? 0 : groups.size() - 1;
  for (size_t done = 0; done + pending_groups < committed; ++done) {
    for (const Copy& copy : groups.front()) land(copy);
    const Unseen unseen;
    groups.erase(groups.begin());
  }
}

// A thread's last act.
void end_cp_async() {
  auto& groups = self().copies;
  for (const auto& group : groups)
    if (!group.empty()) fail(Site::current(), "exits with cp.async in flight");
  const Unseen unseen;
  groups.clear();
}

}  // namespace fastrnn::emulator
