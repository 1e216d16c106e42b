// Runs a layer's recurrence on a stream of the current device, by the plan that is asked for or the best that fits.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>

#include "../params.h"
#include "../plan.h"

namespace fastrnn::cuda {

// What a plan has to know of the current device.
DeviceLimits current_device();

// out [m, n] = a [m, k] times b, which is [k, n], or [n, k] and transposed. a, b are in the storage type, out is in acc; no gaps.
struct Product {
  int64_t m, n, k;
  const void* a;
  const void* b;
  bool transposes_b;
  void* out;
  ScalarKind scalar;
};

struct Run {
  cudaStream_t stream;
  // Empty, or a plan (plan.h: PlanRequest::wanted), then "+tf32" where float32 products may be tf32.
  std::string plan;
  void* workspace;  // scratch, aligned to 256 bytes
  int64_t workspace_bytes;
  // Makes a product ready; what it returns runs it on `stream`, as often as it is called.
  std::function<std::function<void()>(const Product&)> make_product;
};

// Throw std::runtime_error, naming kernel, plan and shape, where the device refuses; std::invalid_argument for a plan that
// does not exist or cannot run this.
void forward(const ForwardParams& params, const Run& run);
void backward(const BackwardParams& params, const Run& run);

}  // namespace fastrnn::cuda
