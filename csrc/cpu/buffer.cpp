#include "buffer.h"

#include <algorithm>
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

// Blocks of earlier calls of this thread; those that have lain longest make room for others.
class Kept {
 public:
  ~Kept() {
    while (count_ > 0) free_block(remove(0));
  }

  // The smallest that is large enough, and not much too large; none: a block without data.
  Block take(int64_t bytes) {
    int best = -1;
    for (int i = 0; i < count_; ++i)
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes / 4 <= bytes &&
          (best < 0 || blocks_[i].bytes < blocks_[best].bytes))
        best = i;
    return best < 0 ? Block{} : remove(best);
  }
  // Whether it is kept.
  bool put(const Block& block) {
    if (block.bytes < kLeastKept || block.bytes > kMostKept) return false;
    while (count_ == kSlots || total_ + block.bytes > kMostKept) free_block(remove(0));
    blocks_[count_++] = block;
    total_ += block.bytes;
    return true;
  }

 private:
  static constexpr int kSlots = 16;

  Block remove(int index) {
    const Block block = blocks_[index];
    total_ -= block.bytes;
    std::move(blocks_ + index + 1, blocks_ + count_, blocks_ + index);
    --count_;
    return block;
  }

  Block blocks_[kSlots];  // the one that has lain longest first
  int count_ = 0;
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
