// What a plan has to know of the current device that only a kernel tells. The runtime is asked, which neither waits for the device
// nor disturbs a capture.
#pragma once

#include <array>
#include <optional>

#include "tiling.h"

namespace fastrnn::cuda {

// [size]: how many clusters, whose blocks have kThreads threads and `shared_bytes`, run at the same time; 0 where none can be
// launched. Nothing where the runtime does not say.
std::optional<std::array<int, kMaxClusterSize + 1>> count_resident_clusters(int shared_bytes);

// The architecture that the kernels' code for this device was compiled for, 80 for 8.0: an older one's PTX runs on a newer device.
// 0: there is none.
int compiled_arch();

}  // namespace fastrnn::cuda
