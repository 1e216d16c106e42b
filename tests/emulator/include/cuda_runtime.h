// What <cuda_runtime.h> is to the emulated kernels: the toolkit's own types and declarations, the language's keywords made
// plain C++, and the runtime's templates, which lead to device.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <tuple>

#include "../grid.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// ------------------------------------------------------------------------------------------------------------- host

namespace fastrnn::emulator {
// device.cpp
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& call);
}  // namespace fastrnn::emulator

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // Copied at the launch, as on the device.
  const std::tuple<Parameters...> copies(arguments...);
  return ::fastrnn::emulator::launch(*config, reinterpret_cast<const void*>(kernel),
                                     [&] { std::apply(kernel, copies); });
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameters...), int threads,
                                                          size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads,
                                                       shared_bytes);
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  return cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(kernel), config);
}

// ----------------------------------------------------------------------------------------------------------- device

inline void __syncthreads(fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  fastrnn::emulator::sync_block(site);
}
inline int __syncthreads_or(int value, fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  return fastrnn::emulator::sync_block_or(value, site);
}
inline void __syncwarp(unsigned mask = fastrnn::emulator::kFullMask,
                       fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  fastrnn::emulator::sync_warp(mask, site);
}

namespace fastrnn::emulator {

// Each lane gets what source(lane) has; a lane that is not there is an error.
template <typename T, typename Source>
T shuffle(unsigned mask, T value, const char* what, Site site, Source source) {
  struct Lane {
    T given, got;
  } mine{value, value};
  collective(mask, mine, what, site, [&](Lane* const(&lanes)[kWarpSize]) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const unsigned from = source(lane);
      if (!(mask >> from & 1)) fail(site, what, " reads lane ", from, ", which does not take part");
      lanes[lane]->got = lanes[from]->given;
    }
  });
  return mine.got;
}

inline unsigned ballot(unsigned mask, bool predicate, const char* what, Site site) {
  struct Lane {
    bool given;
    unsigned got;
  } mine{predicate, 0};
  collective(mask, mine, what, site, [&](Lane* const(&lanes)[kWarpSize]) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < kWarpSize; ++lane)
      if (mask >> lane & 1) votes |= unsigned{lanes[lane]->given} << lane;
    for (unsigned lane = 0; lane < kWarpSize; ++lane)
      if (mask >> lane & 1) lanes[lane]->got = votes;
  });
  return mine.got;
}

}  // namespace fastrnn::emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  // Every lane names a source of its own, so it travels with the value.
  struct Lane {
    T given, got;
    int source;
  } mine{value, value, source};
  fastrnn::emulator::collective(mask, mine, "__shfl_sync", site, [&](Lane* const(&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const int from = lane / width * width + lanes[lane]->source % width;
      if (!(mask >> from & 1))
        fastrnn::emulator::fail(site, "__shfl_sync reads lane ", from, ", which does not take part");
      lanes[lane]->got = lanes[from]->given;
    }
  });
  return mine.got;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  return fastrnn::emulator::shuffle(mask, value, "__shfl_xor_sync", site, [&](unsigned lane) {
    const unsigned from = lane ^ lane_mask;
    return from / width > lane / width ? lane : from;
  });
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  return fastrnn::emulator::shuffle(mask, value, "__shfl_down_sync", site, [&](unsigned lane) {
    return lane % width + delta < static_cast<unsigned>(width) ? lane + delta : lane;
  });
}

inline int __any_sync(unsigned mask, int predicate, fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  return fastrnn::emulator::ballot(mask, predicate != 0, "__any_sync", site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  return fastrnn::emulator::ballot(mask, predicate != 0, "__all_sync", site) == mask;
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fastrnn::emulator::Site site = fastrnn::emulator::Site::current()) {
  return fastrnn::emulator::ballot(mask, predicate != 0, "__ballot_sync", site);
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
