// DeviceLimits as an operator returns them.
#pragma once

#include <cstdint>
#include <vector>

#include "../plan.h"

namespace fastrnn::ops {

inline std::vector<int64_t> numbers_of(const DeviceLimits& limits) {
  std::vector<int64_t> numbers{limits.major, limits.minor, limits.multiprocessors, limits.shared_per_block};
  numbers.insert(numbers.end(), limits.resident_clusters.begin() + 1, limits.resident_clusters.end());
  numbers.push_back(limits.compiled_arch);
  return numbers;
}

}  // namespace fastrnn::ops
