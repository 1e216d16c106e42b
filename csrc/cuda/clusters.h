// How many thread block clusters the current device runs at the same time.
#pragma once

#include <array>

#include "tiling.h"

namespace fastrnn::cuda {

// [size]: of clusters whose blocks have kThreads threads and `shared_bytes`; 0 where none can be launched. Asked of the runtime,
// which neither waits for the device nor disturbs a capture.
std::array<int, kMaxClusterSize + 1> count_resident_clusters(int shared_bytes);

}  // namespace fastrnn::cuda
