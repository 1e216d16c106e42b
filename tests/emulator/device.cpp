#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "grid.h"

namespace fastrnn::emulator {
namespace {

constexpr int kSharedPerBlock = 48 << 10;  // without opting in
constexpr int kReservedShared = 1 << 10;   // of a block, from 8.0 on
constexpr int kRegisters = 64 << 10;       // of a multiprocessor
constexpr int kMostRegisters = 128;  // of a thread: what a kernel is taken to use, where its block is small enough
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kPortableCluster = 8, kMostCluster = 16;

const DeviceLimits kDevices[] = {
    {"H100", 9, 0, {16, 16, 16, 16, 16, 16, 18, 18}, 227 << 10, 228 << 10, 2048, 32},
    {"A100", 8, 0, {16, 16, 16, 16, 16, 14, 14}, 163 << 10, 164 << 10, 2048, 32},
    {"RTX 4090", 8, 9, {12, 12, 12, 12, 12, 12, 12, 12, 12, 10, 10}, 99 << 10, 100 << 10, 1536, 24},
    {"small", 9, 0, {8, 8}, 227 << 10, 228 << 10, 2048, 32},
    {"H100 with code for 8.0", 9, 0, {16, 16, 16, 16, 16, 16, 18, 18}, 227 << 10, 228 << 10, 2048, 32, 80},
    {"H100 with code for 7.5", 9, 0, {16, 16, 16, 16, 16, 16, 18, 18}, 227 << 10, 228 << 10, 2048, 32, 75},
    {"H100 without code", 9, 0, {16, 16, 16, 16, 16, 16, 18, 18}, 227 << 10, 228 << 10, 2048, 32, -1},
    {"old", 7, 5, {8, 8}, 64 << 10, 64 << 10, 1024, 16},
};

struct Attributes {
  int shared_bytes = kSharedPerBlock;
  bool large_clusters = false;
};

const DeviceLimits* chosen = &kDevices[0];
std::map<std::pair<const DeviceLimits*, const void*>, Attributes> functions;  // as long as the process lives
cudaError_t last_error = cudaSuccess;
bool is_broken = false;  // by a kernel that failed: nothing more runs
cudaError_t next_refusal = cudaSuccess, next_failure = cudaSuccess;

uint64_t seed_at_start() {
  const char* text = std::getenv("FASTRNN_EMULATOR_SEED");
  return text ? std::strtoull(text, nullptr, 10) << 32 : 0;
}
uint64_t next_seed = seed_at_start();

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

Attributes& attributes_of(const void* kernel) { return functions[{chosen, kernel}]; }

// What the runtime is asked is counted: it costs the host time.
void count_query() { ++statistics.queries; }

int registers_per_thread(unsigned threads) {
  return std::min<int>(kMostRegisters, kRegisters / std::max(1u, (threads + 31) / 32 * 32));
}

int blocks_per_multiprocessor(unsigned threads, size_t shared_bytes) {
  threads = (threads + 31) / 32 * 32;
  const int shared = static_cast<int>(shared_bytes) + (chosen->major >= 8 ? kReservedShared : 0);
  return std::min({chosen->blocks_per_multiprocessor, chosen->threads_per_multiprocessor / static_cast<int>(threads),
                   shared ? chosen->shared_per_multiprocessor / shared : INT_MAX,
                   kRegisters / (registers_per_thread(threads) * static_cast<int>(threads))});
}

int num_clusters_resident(unsigned threads, size_t shared_bytes, unsigned cluster_size) {
  const int blocks = blocks_per_multiprocessor(threads, shared_bytes);
  return std::accumulate(
      chosen->multiprocessors.begin(), chosen->multiprocessors.end(), 0,
      [&](int sum, int multiprocessors) { return sum + multiprocessors * blocks / static_cast<int>(cluster_size); });
}

unsigned count(dim3 size) { return size.x * size.y * size.z; }

struct Wanted {
  bool cooperative = false;
  unsigned cluster_size = 1;
};

Wanted read_attributes(const cudaLaunchConfig_t& config) {
  Wanted wanted;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) {
      wanted.cooperative = attribute.val.cooperative != 0;
    } else if (attribute.id == cudaLaunchAttributeClusterDimension) {
      const auto& size = attribute.val.clusterDim;
      if (size.y != 1 || size.z != 1) throw Error("the emulator has clusters along x alone");
      wanted.cluster_size = size.x;
    } else {
      throw Error("the emulator does not know launch attribute " + std::to_string(attribute.id));
    }
  }
  return wanted;
}

// What the hardware's runtime would say to a launch.
cudaError_t check(const cudaLaunchConfig_t& config, const Wanted& wanted, const Attributes& attributes) {
  const dim3 grid_size = config.gridDim, block_size = config.blockDim;
  if (is_broken) return cudaErrorLaunchFailure;
  if (count(grid_size) == 0 || count(block_size) == 0) return cudaErrorInvalidConfiguration;
  if (grid_size.x > 0x7fffffffu || grid_size.y > 65535 || grid_size.z > 65535) return cudaErrorInvalidConfiguration;
  if (block_size.x > 1024 || block_size.y > 1024 || block_size.z > 64 || count(block_size) > kMostThreads)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > static_cast<size_t>(attributes.shared_bytes)) return cudaErrorInvalidValue;
  if (wanted.cluster_size == 0) return cudaErrorInvalidClusterSize;
  if (wanted.cluster_size > 1) {
    if (chosen->major < 9) return cudaErrorNotSupported;
    if (wanted.cluster_size > (attributes.large_clusters ? kMostCluster : kPortableCluster))
      return cudaErrorInvalidClusterSize;
    if (grid_size.x % wanted.cluster_size) return cudaErrorInvalidConfiguration;
  }
  const unsigned resident =
      num_clusters_resident(count(block_size), config.dynamicSmemBytes, wanted.cluster_size) * wanted.cluster_size;
  if (resident == 0) return wanted.cluster_size > 1 ? cudaErrorInvalidClusterSize : cudaErrorLaunchOutOfResources;
  if (wanted.cooperative && count(grid_size) > resident) return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace

int DeviceLimits::num_multiprocessors() const {
  return std::accumulate(multiprocessors.begin(), multiprocessors.end(), 0);
}

const DeviceLimits& device() { return *chosen; }

void use_device(const std::string& name) {
  for (const DeviceLimits& limits : kDevices)
    if (limits.name == name) {
      chosen = &limits;
      return;
    }
  throw Error("the emulator has no device \"" + name + "\"");
}

void set_seed(uint64_t seed) { next_seed = seed << 32; }

void reset_device() {
  last_error = cudaSuccess;
  is_broken = false;
}

void refuse_next_launch(cudaError_t error) { next_refusal = error; }
void fail_next_cluster_query(cudaError_t error) { next_failure = error; }

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& call) {
  const Wanted wanted = read_attributes(config);
  if (next_refusal != cudaSuccess) return remember(std::exchange(next_refusal, cudaSuccess));
  if (device().compiled_arch < 0) return remember(cudaErrorNoKernelImageForDevice);
  if (const cudaError_t error = check(config, wanted, attributes_of(kernel)); error != cudaSuccess)
    return remember(error);
  try {
    run({config.gridDim, config.blockDim, config.dynamicSmemBytes, wanted.cluster_size, wanted.cooperative, next_seed++,
         call});
  } catch (...) {
    is_broken = true;
    throw;
  }
  return cudaSuccess;
}

}  // namespace fastrnn::emulator

// ------------------------------------------------------------------------ what kernels' host code may call of the runtime
// Anything else does not link.

using namespace fastrnn::emulator;

cudaError_t cudaGetDevice(int* index) {
  *index = static_cast<int>(&device() - kDevices);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  count_query();
  const DeviceLimits& limits = kDevices[index];
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = limits.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = limits.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = limits.num_multiprocessors(); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = kSharedPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = limits.shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = limits.shared_per_multiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = limits.major >= 8 ? kReservedShared : 0; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = kRegisters; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = kMostThreads; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = limits.threads_per_multiprocessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = limits.blocks_per_multiprocessor; break;
    case cudaDevAttrWarpSize: *value = kWarpSize; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrClusterLaunch: *value = limits.major >= 9; break;
    default: return remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  count_query();
  Attributes& attributes = attributes_of(kernel);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || value > device().shared_per_block) return remember(cudaErrorInvalidValue);
      if (value < device().shared_per_block)
        throw Error("a kernel's shared memory is limited to " + std::to_string(value) +
                    " bytes, and another host thread may launch it with more");
      attributes.shared_bytes = value;
      return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      if (device().major < 9) return remember(cudaErrorInvalidValue);
      attributes.large_clusters = value != 0;
      return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout: return cudaSuccess;
    default: return remember(cudaErrorInvalidValue);
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  count_query();
  if (device().compiled_arch < 0) return remember(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = kMostThreads;
  attributes->maxDynamicSharedSizeBytes = attributes_of(kernel).shared_bytes;
  attributes->numRegs = kMostRegisters;
  attributes->binaryVersion = device().major * 10 + device().minor;
  attributes->ptxVersion = device().compiled_arch ? device().compiled_arch : attributes->binaryVersion;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared_bytes) {
  count_query();
  if (threads < 1) return remember(cudaErrorInvalidValue);
  const bool fits =
      shared_bytes <= static_cast<size_t>(attributes_of(kernel).shared_bytes) && threads <= int{kMostThreads};
  *blocks = fits ? blocks_per_multiprocessor(threads, shared_bytes) : 0;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  count_query();
  *clusters = 0;
  if (next_failure != cudaSuccess) return remember(std::exchange(next_failure, cudaSuccess));
  const Wanted wanted = read_attributes(*config);
  cudaLaunchConfig_t one = *config;
  one.gridDim = dim3(std::max(1u, wanted.cluster_size));
  if (const cudaError_t error = check(one, wanted, attributes_of(kernel)); error != cudaSuccess) return remember(error);
  *clusters = num_clusters_resident(count(config->blockDim), config->dynamicSmemBytes, wanted.cluster_size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (is_broken) return remember(cudaErrorLaunchFailure);
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return is_broken ? cudaErrorLaunchFailure : last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorInvalidClusterSize: return "cluster misconfiguration";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "an error that the emulator has no words for";
  }
}
