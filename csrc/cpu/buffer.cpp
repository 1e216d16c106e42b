#include "buffer.h"

#include <cstddef>
#include <new>

#include "pages.h"

namespace fastrnn::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr int64_t kLeastKept = int64_t{256} << 10;
constexpr int64_t kMostKept = int64_t{64} << 20;  // in all, a thread's

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};

Block allocate_block(int64_t bytes) {
  const Block block{::operator new(static_cast<std::size_t>(bytes), kAlignment), bytes};
  prefer_huge_pages(block.data, block.bytes);
  return block;
}

void free_block(const Block& block) { ::operator delete(block.data, kAlignment); }

// Blocks of earlier calls of this thread.
class Kept {
 public:
  ~Kept() {
    for (const Block& block : blocks_) free_block(block);
  }

  // The smallest that is large enough, and not much too large; none: a block without data.
  Block take(int64_t bytes) {
    Block* best = nullptr;
    for (Block& block : blocks_)
      if (block.bytes >= bytes && block.bytes / 4 <= bytes && (!best || block.bytes < best->bytes)) best = &block;
    if (!best) return {};
    const Block taken = *best;
    total_ -= taken.bytes;
    *best = {};
    return taken;
  }
  // Whether it is kept.
  bool put(const Block& block) {
    if (block.bytes < kLeastKept || total_ + block.bytes > kMostKept) return false;
    for (Block& slot : blocks_) {
      if (slot.data) continue;
      slot = block;
      total_ += block.bytes;
      return true;
    }
    return false;
  }

 private:
  Block blocks_[8];
  int64_t total_ = 0;
};

thread_local Kept kept;

}  // namespace

Buffer::~Buffer() { free(); }

void Buffer::allocate(int64_t bytes) {
  free();
  Block block = kept.take(bytes);
  if (!block.data) block = allocate_block(bytes > 0 ? bytes : 1);
  data_ = block.data;
  bytes_ = block.bytes;
}

void Buffer::free() {
  const Block block{data_, bytes_};
  data_ = nullptr;
  bytes_ = 0;
  if (!kept.put(block)) free_block(block);
}

}  // namespace fastrnn::cpu
