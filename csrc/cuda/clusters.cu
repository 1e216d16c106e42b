#include "clusters.h"

#include "launch.cuh"

namespace fastrnn::cuda {
namespace {

// Stands for the recurrences: its blocks are as large as theirs.
__global__ void __launch_bounds__(kThreads, 1) occupy() {}

}  // namespace

std::array<int, kMaxClusterSize + 1> count_resident_clusters(int shared_bytes) {
  std::array<int, kMaxClusterSize + 1> counts{};
  Launch launch_;
  launch_.threads = kThreads;
  launch_.shared_bytes = shared_bytes;
  const bool is_prepared =
      cudaFuncSetAttribute(occupy, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) == cudaSuccess;
  // More than 8 is not portable: not every device has it.
  const bool has_large =
      is_prepared && cudaFuncSetAttribute(occupy, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess;
  if (!has_large) (void)cudaGetLastError();
  for (int size = 1; is_prepared && size <= (has_large ? kMaxClusterSize : 8); ++size) {
    launch_.cluster_size = size;
    counts[size] = resident_clusters(launch_, occupy);
  }
  return counts;
}

}  // namespace fastrnn::cuda
