// Fresh memory in large pages.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// Asks for large pages where a tensor is so large that the allocator takes it fresh from the system each time: a fault for every
// 4 KB would take a tenth of a training step. Memory that has been written already stays as it is.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace fastrnn::cpu
