#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace fastrnn::emulator {
namespace {

constexpr size_t kStacksAtATime = 64;
constexpr uint64_t kCanary = 0x5ca1ab1edeadbea7;
// Behind the end of shared memory. AddressSanitizer has a guard of its own there, at the very byte.
constexpr size_t kGuardBytes = kAddressSanitizer ? 0 : 64;

}  // namespace

void poison(void* memory, size_t bytes) {
  uint16_t pattern[32];
  std::fill(std::begin(pattern), std::end(pattern), kPoison);
  auto* to = static_cast<unsigned char*>(memory);
  for (size_t at = 0; at < bytes; at += sizeof pattern)
    std::memcpy(to + at, pattern, std::min(sizeof pattern, bytes - at));
}

void FiberPool::grow(size_t count, void (*entry)()) {
  while (fibers_.size() < count) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = new_stack();
    std::memcpy(fiber->stack, &kCanary, sizeof kCanary);
    // Were all stacks to end at the same offset in a page, their hot ends would share a few sets of the caches.
    const size_t shift = fibers_.size() % kStacksAtATime * 5 * 64;
    prepare(fiber->context, fiber->stack, kStackBytes - shift, entry);
    IF_TSAN(fiber->tsan = __tsan_create_fiber(0);)
    fibers_.push_back(std::move(fiber));
  }
}

void FiberPool::clear() {
#if defined(EMULATOR_TSAN)
  // What they did in their unfinished kernels is over.
  void* own = __tsan_get_current_fiber();
  for (auto& fiber : fibers_) {
    __tsan_switch_to_fiber(fiber->tsan, /*no synchronisation*/ 1);
    __tsan_release(this);
    __tsan_switch_to_fiber(own, 1);
    __tsan_destroy_fiber(fiber->tsan);
  }
  __tsan_acquire(this);
#endif
  fibers_.clear();
  for (unsigned char* stacks : stacks_) {
    IF_ASAN(ASAN_UNPOISON_MEMORY_REGION(stacks, kStackBytes * kStacksAtATime);)
    munmap(stacks, kStackBytes * kStacksAtATime);
  }
  stacks_.clear();
}

unsigned char* FiberPool::new_stack() {
  const size_t place = fibers_.size() % kStacksAtATime;
  if (place == 0) {
    void* stacks = mmap(nullptr, kStackBytes * kStacksAtATime, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) throw Error("no memory for the threads' stacks");
    stacks_.push_back(static_cast<unsigned char*>(stacks));
  }
  return stacks_.back() + place * kStackBytes;
}

bool has_overflown(const Fiber& fiber) { return std::memcmp(fiber.stack, &kCanary, sizeof kCanary) != 0; }

SharedMemory::~SharedMemory() {
  for (const Buffer& buffer : buffers_) std::free(buffer.memory);
}

unsigned char* SharedMemory::of(size_t slot, size_t bytes) {
  if (slot >= buffers_.size()) buffers_.resize(slot + 1);
  Buffer& buffer = buffers_[slot];
  if (kAddressSanitizer || buffer.capacity < bytes + kGuardBytes) {
    std::free(buffer.memory);
    buffer.capacity = std::max<size_t>(bytes + kGuardBytes, 1);
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, buffer.capacity)) throw Error("no memory for the blocks' shared memory");
    buffer.memory = static_cast<unsigned char*>(memory);
  }
  poison(buffer.memory, bytes);
  std::memset(buffer.memory + bytes, 0xa5, kGuardBytes);
  return buffer.memory;
}

bool SharedMemory::was_overrun(size_t slot, size_t bytes) const {
  const unsigned char* guard = buffers_[slot].memory + bytes;
  return std::any_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte != 0xa5; });
}

}  // namespace fastrnn::emulator
