#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrnn::cpu {

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t kLeast = 16 << 20;
  constexpr uintptr_t kPage = 2 << 20;
  if (!data || bytes < kLeast) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  // Advice: a kernel that does not take it changes nothing.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastrnn::cpu
