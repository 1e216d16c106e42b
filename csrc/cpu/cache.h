// Sizes of the caches that blocks are cut for.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

struct CacheSizes {
  int64_t l1, l2;  // bytes, of one core
};
CacheSizes cache_sizes();

}  // namespace fastrnn::cpu
