// The memory that fibers and blocks run in, kept from one launch to the next.
#pragma once

#include <memory>
#include <vector>

#include "grid.h"

#if defined(__SANITIZE_ADDRESS__)
#define IF_ASAN(...) __VA_ARGS__
constexpr bool kAddressSanitizer = true;
#else
#define IF_ASAN(...)
constexpr bool kAddressSanitizer = false;
#endif
#if defined(EMULATOR_TSAN)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

namespace fastrnn::emulator {

constexpr size_t kStackBytes = 256 << 10;  // of address space; pages that are never touched cost nothing

class FiberPool {
 public:
  ~FiberPool() { clear(); }
  // At least `count` fibers; those that are new will call entry().
  void grow(size_t count, void (*entry)());
  Fiber& operator[](size_t index) { return *fibers_[index]; }
  // Fibers that were left in the middle of a kernel cannot be used again.
  void clear();

 private:
  unsigned char* new_stack();

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<unsigned char*> stacks_;
};

bool has_overflown(const Fiber& fiber);

class SharedMemory {
 public:
  ~SharedMemory();
  // `bytes` of poison.
  unsigned char* of(size_t slot, size_t bytes);
  bool was_overrun(size_t slot, size_t bytes) const;

 private:
  struct Buffer {
    unsigned char* memory = nullptr;
    size_t capacity = 0;
  };
  std::vector<Buffer> buffers_;
};

}  // namespace fastrnn::emulator
