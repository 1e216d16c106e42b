// Scratch memory of one call, aligned to cache lines and not initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastrnn::cpu {

class Buffer {
 public:
  // Throws std::bad_alloc.
  void allocate(int64_t bytes) {
    constexpr std::align_val_t kAlignment{64};
    data_.reset(::operator new(static_cast<std::size_t>(bytes > 0 ? bytes : 1), kAlignment));
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<void, Free> data_;
};

}  // namespace fastrnn::cpu
