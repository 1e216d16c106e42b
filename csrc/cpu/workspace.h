// Memory for packed operands.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

// At least `bytes`, aligned to 64, owned by the calling thread and valid until its next call: kept, since faulting fresh pages
// in would take a good part of a small product's time. Throws std::bad_alloc.
void* workspace(int64_t bytes);

}  // namespace fastrnn::cpu
