#include "buffer.h"

#include <cstddef>
#include <new>

namespace fastrnn::cpu {

namespace {
constexpr std::align_val_t kAlignment{64};
}

Buffer::~Buffer() { free(); }

void Buffer::allocate(int64_t bytes) {
  free();
  data_ = ::operator new(static_cast<std::size_t>(bytes > 0 ? bytes : 1), kAlignment);
}

void Buffer::free() {
  ::operator delete(data_, kAlignment);
  data_ = nullptr;
}

}  // namespace fastrnn::cpu
