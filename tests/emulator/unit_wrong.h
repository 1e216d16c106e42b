// Small kernels that are wrong, in one way each.
#pragma once

#include "unit.h"

namespace fastrnn::unit {

__global__ inline void nobody_comes(int) {
  if (threadIdx.x == 33) __syncwarp();
}
__global__ inline void two_places(int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ inline void lanes_apart(int* out) {
  if (threadIdx.x % 2) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    __syncwarp();
  }
}
__global__ inline void absent_lane(int* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 16); }
__global__ inline void wait_for_ever(const unsigned* flag) {
  Spin spin("a flag", 0);
  while (load_acquire(flag) == 0) spin.pause();
}
__global__ inline void next_door(int) {
  FASTRNN_SMEM(buffer);
  buffer[64 + threadIdx.x] = 1;
}
__global__ inline void uninitialised(float* out) {
  FASTRNN_SMEM(buffer);
  out[threadIdx.x] = reinterpret_cast<float*>(buffer)[threadIdx.x];
}
__global__ inline void forgets_to_wait(const int* in) {
  FASTRNN_SMEM(buffer);
  cp_async<16>(buffer, in, true);
  cp_async_commit();
}
__global__ inline void crooked(const char* in) {
  FASTRNN_SMEM(buffer);
  cp_async<8>(buffer + 4, in, true);
}
__global__ inline void too_far(int) {
  FASTRNN_SMEM(buffer);
  uint32_t words[4];
  ldmatrix_x4(words, buffer + threadIdx.x * 16);
}
__global__ inline void without_barrier(int* out) {
  FASTRNN_SMEM(buffer);
  int* shared = reinterpret_cast<int*>(buffer);
  shared[threadIdx.x] = 1;
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}
// Every peer has its push, and some of them have left.
__global__ inline void pushes_to_the_dead(int) {
  FASTRNN_SMEM(buffer);
  auto* barrier = reinterpret_cast<MBarrier*>(buffer);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  fence_mbarrier_init();
  cluster_sync();
  if (cluster_rank() == 1) return;
  for (int i = 0; i < 100; ++i) __syncwarp();
  if (threadIdx.x == 0) store_async(map_to_peer(buffer + 16, 1), map_to_peer(barrier, 1), 1u);
}
__global__ inline void arrives_twice(int) {
  FASTRNN_SMEM(buffer);
  auto* barrier = reinterpret_cast<MBarrier*>(buffer);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  __syncthreads();
  mbarrier_expect_bytes(barrier, 16);
}
__global__ inline void overrun_by_phases(int) {
  FASTRNN_SMEM(buffer);
  auto* barrier = reinterpret_cast<MBarrier*>(buffer);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0)
    for (int phase = 0; phase < 64; ++phase) mbarrier_expect_bytes(barrier, 0);
  if (threadIdx.x != 0)
    while (!mbarrier_test(barrier, 0)) continue;
}

}  // namespace fastrnn::unit
