#include "clusters.h"

#include "launch.cuh"

namespace fastrnn::cuda {
namespace {

// Stands for the recurrences: its blocks are as large as theirs.
__global__ void __launch_bounds__(kThreads, 1) occupy() {}

}  // namespace

std::optional<std::array<int, kMaxClusterSize + 1>> count_resident_clusters(int shared_bytes) {
  std::array<int, kMaxClusterSize + 1> counts{};
  Launch launch_;
  launch_.threads = kThreads;
  launch_.shared_bytes = shared_bytes;
  const auto set = [](cudaFuncAttribute attribute, int value) {
    return attempt([&] { return cudaFuncSetAttribute(occupy, attribute, value); });
  };
  if (set(cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) != cudaSuccess) return std::nullopt;
  // More than 8 is not portable: not every device has it.
  const cudaError_t large = set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (large != cudaSuccess && !is_refusal(large)) return std::nullopt;
  for (int size = 1; size <= (large == cudaSuccess ? kMaxClusterSize : 8); ++size) {
    launch_.cluster_size = size;
    const std::optional<int> count = resident_clusters(launch_, occupy);
    if (!count) return std::nullopt;
    counts[size] = *count;
  }
  return counts;
}

int compiled_arch() {
  cudaFuncAttributes attributes{};
  const cudaError_t error = attempt([&] { return cudaFuncGetAttributes(&attributes, occupy); });
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) return 0;
  Launch launch_;
  launch_.what = "fastrnn's kernels";
  check(launch_, error);
  return attributes.ptxVersion;
}

}  // namespace fastrnn::cuda
