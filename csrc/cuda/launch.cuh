// The only place that launches a kernel: on the caller's stream and device, with one check that names kernel and shape.
#pragma once

#include <cuda_runtime.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "../params.h"

namespace fastrnn::cuda {

inline const char* cell_name(CellKind cell) {
  constexpr const char* kNames[] = {"RNN tanh", "RNN relu", "LSTM", "GRU"};
  return kNames[static_cast<int>(cell)];
}

inline std::string describe(const Shape& shape) {
  std::ostringstream text;
  text << cell_name(shape.cell) << ", hidden_size " << shape.hidden_size << ", batch " << shape.batch << ", steps "
       << shape.steps << ", directions " << shape.directions;
  return text.str();
}

struct Launch {
  std::string what;  // kernel, plan and shape, for an error
  cudaStream_t stream;
  int grid = 1, threads = 1;
  size_t shared_bytes = 0;
  int cluster_size = 1;
  bool cooperative = false;  // all blocks run at the same time
};

[[noreturn]] inline void fail(const Launch& launch, cudaError_t error, const char* advice) {
  std::ostringstream message;
  message << launch.what << ": " << cudaGetErrorString(error) << " (" << launch.grid << " blocks of " << launch.threads
          << " threads, " << launch.shared_bytes << " bytes of shared memory, clusters of " << launch.cluster_size
          << (launch.cooperative ? ", cooperative" : "") << ')' << advice;
  throw std::runtime_error(message.str());
}

inline void check(const Launch& launch, cudaError_t error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // an error of the call is not the next one's
  const char* advice = "";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    advice =
        ". fastrnn was not built for this GPU: build it again with TORCH_CUDA_ARCH_LIST set to its compute capability";
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion)
    advice = ". The driver is too old for this build: update it, or build with an older CUDA toolkit";
  if (error == cudaErrorCooperativeLaunchTooLarge)
    advice = ". plan=\"stepwise\" (or FASTRNN_PLANS=stepwise for a whole process) runs without cooperative launches";
  fail(launch, error, advice);
}

// What a kernel with more shared memory or larger clusters than is portable needs, once, before its occupancy is asked for or it is
// launched. Always all the shared memory there is: a lower limit would refuse what another host thread is about to launch.
template <typename... Parameters>
void prepare(const Launch& launch, void (*kernel)(Parameters...), int shared_per_block) {
  if (launch.shared_bytes > 48 * 1024)
    check(launch, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_per_block));
  if (launch.cluster_size > 8)
    check(launch, cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

template <typename... Parameters>
void launch(const Launch& launch, void (*kernel)(Parameters...), const Parameters&... parameters) {
  if (launch.grid == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.grid));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (launch.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (launch.cluster_size > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(launch.cluster_size);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  check(launch, cudaLaunchKernelEx(&config, kernel, parameters...));
}

// The architecture that the kernel's code for the current device was compiled for, 80 for 8.0: an older one's PTX runs on a newer
// device.
template <typename... Parameters>
int compiled_arch(const Launch& launch, void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  check(launch, cudaFuncGetAttributes(&attributes, kernel));
  return attributes.ptxVersion;
}

// How many clusters of launch.cluster_size blocks of the kernel run at the same time on the current device.
template <typename... Parameters>
int resident_clusters(const Launch& launch, void (*kernel)(Parameters...)) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.cluster_size));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = launch.shared_bytes;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(launch.cluster_size);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) (void)cudaGetLastError();
  return clusters;
}

// How many blocks of the kernel can wait for each other on the current device.
template <typename... Parameters>
int resident_blocks(const Launch& launch, void (*kernel)(Parameters...), int multiprocessors) {
  int per_multiprocessor = 0;
  check(launch, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, launch.threads,
                                                              launch.shared_bytes));
  return per_multiprocessor * multiprocessors;
}

}  // namespace fastrnn::cuda
