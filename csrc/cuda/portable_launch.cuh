// Launches the portable kernels of one storage type; instantiate/portable_*.cu compile it, each for its own.
#pragma once

#include <sstream>
#include <stdexcept>

#include "portable.cuh"
#include "portable.h"

namespace fastrnn::cuda {

inline const char* cell_name(CellKind cell) {
  constexpr const char* kNames[] = {"RNN tanh", "RNN relu", "LSTM", "GRU"};
  return kNames[static_cast<int>(cell)];
}

template <typename... Parts>
[[noreturn]] void fail_launch(const char* kernel, const Shape& shape, const Parts&... parts) {
  std::ostringstream message;
  message << kernel << " of " << cell_name(shape.cell) << ", hidden_size " << shape.hidden_size << ", batch "
          << shape.batch << ", steps " << shape.steps << ", directions " << shape.directions << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename Params>
void launch(const char* name, void (*kernel)(Params), dim3 grid, size_t shared_bytes, const Params& params,
            cudaStream_t stream) {
  const auto check = [&](cudaError_t error) {
    if (error != cudaSuccess) fail_launch(name, params.shape, cudaGetErrorString(error));
  };
  int device = 0, most_shared_bytes = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&most_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (shared_bytes > static_cast<size_t>(most_shared_bytes))
    fail_launch(name, params.shape, "needs ", shared_bytes, " bytes of shared memory for its state, the device has ",
                most_shared_bytes, "; fastrnn.backend(\"reference\") has no such limit");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kPortableThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, params));
}

template <typename Function>
void with_cell(CellKind cell, Function function) {
  switch (cell) {
    case CellKind::kRnnTanh: return function(RnnTanh{});
    case CellKind::kRnnRelu: return function(RnnRelu{});
    case CellKind::kLstm: return function(Lstm{});
    case CellKind::kGru: return function(Gru{});
  }
}

template <typename Scalar>
void PortableKernels<Scalar>::forward(const ForwardParams& params, cudaStream_t stream) {
  const Shape& shape = params.shape;
  with_cell(shape.cell, [&]<typename Cell>(Cell) {
    if (shape.batch == 0) return;
    SharedArrays arrays(nullptr);
    PortableForwardShared<AccOf<Scalar>>(arrays, shape, Cell::kHasCell, params.w_hr[0] != nullptr);
    const dim3 grid(static_cast<unsigned>(shape.batch), static_cast<unsigned>(shape.directions));
    launch("portable_forward", portable_forward<Scalar, Cell>, grid, arrays.used(), params, stream);
  });
}

template <typename Scalar>
void PortableKernels<Scalar>::backward(const BackwardParams& params, cudaStream_t stream) {
  const Shape& shape = params.shape;
  with_cell(shape.cell, [&]<typename Cell>(Cell) {
    if (shape.batch > 0) {
      SharedArrays arrays(nullptr);
      PortableBackwardShared<AccOf<Scalar>>(arrays, shape, Cell::kHasCell, Cell::kGates, kPortableThreads);
      const dim3 grid(static_cast<unsigned>(shape.batch), static_cast<unsigned>(shape.directions));
      launch("portable_backward", portable_backward<Scalar, Cell>, grid, arrays.used(), params, stream);
    }
    if (!params.grad_bias) return;
    const int64_t num_columns = (Cell::kHasExtra ? Cell::kGates + 1 : Cell::kGates) * shape.hidden_size;
    const dim3 grid(static_cast<unsigned>((num_columns + kPortableThreads - 1) / kPortableThreads),
                    static_cast<unsigned>(shape.directions));
    launch("portable_grad_bias", portable_grad_bias<Scalar, Cell>, grid, 0, params, stream);
  });
}

}  // namespace fastrnn::cuda
