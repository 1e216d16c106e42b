// Scratch memory of one call, aligned to cache lines and not initialised.
//
// A thread keeps what its calls have freed, large blocks up to 64 MB, for the next ones: fresh from the system, each 4 KB would cost
// a page fault.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// Between what different threads write over and over. Prefetchers of a core run past the end of what it uses, by some lines up to the
// end of the page, and fetch what lies there out of another core's cache.
constexpr int64_t kApartBytes = 4096;

// Defined in buffer.cpp, outside of every instruction set: a destructor that is generated where it is used, as that of a
// std::unique_ptr, would be one of that file's instruction set, and the linker may keep it for the whole library.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  // Throws std::bad_alloc; then the buffer is empty.
  void allocate(int64_t bytes);

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void free();

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace fastrnn::cpu
