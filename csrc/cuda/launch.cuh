// The only place that launches a kernel: on the caller's stream and device, with one check that names kernel and shape.
#pragma once

#include <cuda_runtime.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "../params.h"
#include "runtime.h"

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
  const auto set = [&](Question::Kind kind, cudaFuncAttribute attribute, int value) {
    answer({kind, reinterpret_cast<const void*>(kernel), 0, 0, 0}, [&] {
      check(launch, attempt([&] { return cudaFuncSetAttribute(kernel, attribute, value); }));
      return value;
    });
  };
  if (launch.shared_bytes > 48 * 1024)
    set(Question::kAllSharedMemory, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_per_block);
  if (launch.cluster_size > 8) set(Question::kLargeClusters, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <typename... Parameters>
cudaError_t attempt_launch(const Launch& launch, void (*kernel)(Parameters...), const Parameters&... parameters) {
  if (launch.grid == 0) return cudaSuccess;
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
  return attempt([&] { return cudaLaunchKernelEx(&config, kernel, parameters...); });
}

template <typename... Parameters>
void launch(const Launch& launch, void (*kernel)(Parameters...), const Parameters&... parameters) {
  check(launch, attempt_launch(launch, kernel, parameters...));
}

// False where the device has no room for it: nothing was launched, and a smaller launch may fit.
template <typename... Parameters>
bool launch_if_it_fits(const Launch& launch, void (*kernel)(Parameters...), const Parameters&... parameters) {
  const cudaError_t error = attempt_launch(launch, kernel, parameters...);
  if (error == cudaErrorCooperativeLaunchTooLarge || is_refusal(error)) return false;
  check(launch, error);
  return true;
}

// Fills memory with zeros.
inline void clear(const Launch& launch, void* data, size_t bytes) {
  check(launch, attempt([&] { return cudaMemsetAsync(data, 0, bytes, launch.stream); }));
}

// How many clusters of launch.cluster_size blocks of the kernel run at the same time on the current device; nothing where the runtime
// does not say.
template <typename... Parameters>
std::optional<int> resident_clusters(const Launch& launch, void (*kernel)(Parameters...)) {
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
  const Question question{Question::kResidentClusters, reinterpret_cast<const void*>(kernel), launch.shared_bytes,
                          launch.cluster_size, 0};
  return answer(question, [&]() -> std::optional<int> {
    int clusters = 0;
    const cudaError_t error = attempt([&] { return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config); });
    if (error == cudaSuccess) return clusters;
    if (is_refusal(error)) return 0;
    return std::nullopt;
  });
}

// How many blocks of the kernel can wait for each other on the current device.
template <typename... Parameters>
int resident_blocks(const Launch& launch, void (*kernel)(Parameters...), int multiprocessors) {
  const Question question{Question::kResidentBlocks, reinterpret_cast<const void*>(kernel), launch.shared_bytes, 1, 0};
  const std::optional<int> per_multiprocessor = answer(question, [&] {
    int blocks = 0;
    check(launch, attempt([&] {
            return cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, launch.threads, launch.shared_bytes);
          }));
    return blocks;
  });
  return *per_multiprocessor * multiprocessors;
}

}  // namespace fastrnn::cuda
