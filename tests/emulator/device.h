// The device that the emulated runtime pretends to have, and what tests may choose of it.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

namespace fastrnn::emulator {

struct DeviceLimits {
  std::string name;
  int major, minor;
  std::vector<int> multiprocessors;  // of each GPC, which a cluster does not leave
  int shared_per_block;              // after opting in
  int shared_per_multiprocessor;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int compiled_arch = 0;  // what the kernels' code was compiled for, 80 for 8.0; 0: for this device

  int num_multiprocessors() const;
};

// "H100", "A100", "RTX 4090", "small" (Hopper's features on 16 multiprocessors), "old" (7.5), "H100 with code for 8.0", "H100 with code
// for 7.5", "H100 without code".
void use_device(const std::string& name);
const DeviceLimits& device();

// Launches take seeds from here upwards, so that no two have the same schedule. FASTRNN_EMULATOR_SEED sets it at the start.
void set_seed(uint64_t seed);

// No error is left behind.
void reset_device();

// Such as no emulated device has a reason for.
void refuse_next_launch(cudaError_t error);
void fail_next_cluster_query(cudaError_t error);

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& call);

}  // namespace fastrnn::emulator
