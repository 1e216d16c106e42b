// How the emulator's own tests launch kernels and say what they expect.
#pragma once

#include <string>
#include <vector>

#include <intrinsics.cuh>

#include "device.h"

namespace fastrnn::unit {

using namespace fastrnn::cuda;
using emulator::Error;

struct Shape {
  unsigned blocks, threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};

template <typename... Parameters, typename... Arguments>
cudaError_t try_launch(Shape shape, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {shape.cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = shape.cooperative;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename... Parameters, typename... Arguments>
void launch(Shape shape, void (*kernel)(Parameters...), Arguments... arguments) {
  if (const cudaError_t error = try_launch(shape, kernel, arguments...); error != cudaSuccess)
    throw Error(std::string("refused: ") + cudaGetErrorString(error));
}

inline void expect(bool condition, const char* what) {
  if (!condition) throw Error(std::string("wrong: ") + what);
}

}  // namespace fastrnn::unit
