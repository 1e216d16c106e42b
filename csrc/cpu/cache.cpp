#include "cache.h"

#include <unistd.h>

namespace fastrnn::cpu {
namespace {

// Some virtual machines and C libraries say 0 or -1.
[[maybe_unused]] int64_t reported(int name, int64_t otherwise) {
  const long size = sysconf(name);
  return size > 0 ? size : otherwise;
}

}  // namespace

CacheSizes cache_sizes() {
  constexpr int64_t l1 = 32 << 10, l2 = 512 << 10;
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const CacheSizes sizes{reported(_SC_LEVEL1_DCACHE_SIZE, l1), reported(_SC_LEVEL2_CACHE_SIZE, l2)};
  return sizes;
#else
  return {l1, l2};
#endif
}

}  // namespace fastrnn::cpu
