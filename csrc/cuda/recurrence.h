// Runs a layer's recurrence on a stream of the current device, by the plan that is asked for or the best that fits.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "../params.h"

namespace fastrnn::cuda {

struct Run {
  cudaStream_t stream;
  // Empty, or a plan's name, then "+tf32" where float32 products may be tf32.
  std::string plan;
  void* workspace;  // scratch, aligned to 256 bytes; may be nullptr for the portable plan
  int64_t workspace_bytes;
};

// Throw std::runtime_error, naming kernel, plan and shape, where the device refuses; std::invalid_argument for a plan that
// does not exist or cannot run this.
void forward(const ForwardParams& params, const Run& run);
void backward(const BackwardParams& params, const Run& run);

}  // namespace fastrnn::cuda
