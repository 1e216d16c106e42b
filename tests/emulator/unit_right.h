// Small kernels that are right: what they compute has one answer on every schedule.
#pragma once

#include "unit.h"

namespace fastrnn::unit {

// Each block turns its part round, in shared memory.
__global__ inline void reverse(const int* in, int* out) {
  FASTRNN_SMEM(buffer);
  int* shared = reinterpret_cast<int*>(buffer);
  const unsigned base = blockIdx.x * blockDim.x;
  shared[threadIdx.x] = in[base + threadIdx.x];
  __syncthreads();
  out[base + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

inline void barriers() {
  std::vector<int> in(7 * 96), out(7 * 96, -1);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i);
  launch({7, 96, 96 * 4}, reverse, in.data(), out.data());
  for (int i = 0; i < 7 * 96; ++i) expect(out[i] == i / 96 * 96 + 95 - i % 96, "reversed");
}

// Threads that have left are not waited for.
__global__ inline void leave_early(int* out) {
  if (threadIdx.x % 3 == 0) return;
  for (int round = 0; round < 3; ++round) {
    const int any = __syncthreads_or(threadIdx.x == 4 && round == 1);
    if (any) out[threadIdx.x] += 1;
  }
}

inline void exits() {
  std::vector<int> out(64, 0);
  launch({1, 64}, leave_early, out.data());
  for (int i = 0; i < 64; ++i) expect(out[i] == (i % 3 ? 1 : 0), "a vote seen by all that are left");
}

__global__ inline void shuffle(int* out) {
  const int lane = threadIdx.x % 32, value = lane * lane;
  int sum = value;
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  const int rotated = __shfl_sync(0xffffffffu, value, (lane + 5) % 32);
  const int next = __shfl_down_sync(0xffffffffu, value, 1);
  const unsigned odd = __ballot_sync(0xffffffffu, lane % 2);
  int half = -1;
  if (lane < 16) half = __shfl_xor_sync(0x0000ffffu, value, 1);
  if (lane >= 16) half = __shfl_xor_sync(0xffff0000u, value, 1);
  const auto square = [](int x) { return x * x; };
  out[threadIdx.x] = sum == 31 * 32 * 63 / 6 && rotated == square((lane + 5) % 32) &&
                     next == square(lane < 31 ? lane + 1 : 31) && odd == 0xaaaaaaaau && half == square(lane ^ 1) &&
                     __any_sync(0xffffffffu, lane == 3) && !__any_sync(0xffffffffu, lane == 33);
}

inline void shuffles() {
  std::vector<int> out(96, 0);
  launch({1, 96}, shuffle, out.data());
  for (const int right : out) expect(right, "shuffled");
}

// d = a b with the three matrix instructions; a [16, 16], b [16, 8], small integers, so that every type is exact.
__global__ inline void multiply(const float* a, const float* b, float* d) {
  const int lane = threadIdx.x, group = lane / 4, quad = lane % 4;
  const auto word16 = [](float low, float high, bool bf16) {
    const auto bits = [&](float x) -> uint32_t {
      uint32_t word;
      memcpy(&word, &x, 4);
      if (bf16) return word >> 16;
      return x == 0 ? 0 : (word >> 16 & 0x8000) | ((word >> 23 & 0xff) - 112) << 10 | (word >> 13 & 0x3ff);
    };
    return bits(low) | bits(high) << 16;
  };
  float c[3][4] = {};
  for (const bool bf16 : {true, false}) {
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
      const float* at = a + (group + i % 2 * 8) * 16 + quad * 2 + i / 2 * 8;
      fa[i] = word16(at[0], at[1], bf16);
    }
    for (int i = 0; i < 2; ++i) {
      const float* at = b + (quad * 2 + i * 8) * 8 + group;
      fb[i] = word16(at[0], at[8], bf16);
    }
    bf16 ? mma_m16n8k16_bf16(c[0], fa, fb) : mma_m16n8k16_f16(c[1], fa, fb);
  }
  for (int k = 0; k < 16; k += 8) {
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
      const float x = round_to_tf32(a[(group + i % 2 * 8) * 16 + k + quad + i / 2 * 4]);
      memcpy(&fa[i], &x, 4);
    }
    for (int i = 0; i < 2; ++i) {
      const float x = round_to_tf32(b[(k + quad + i * 4) * 8 + group]);
      memcpy(&fb[i], &x, 4);
    }
    mma_m16n8k8_tf32(c[2], fa, fb);
  }
  for (int type = 0; type < 3; ++type)
    for (int i = 0; i < 4; ++i) d[type * 128 + (group + i / 2 * 8) * 8 + quad * 2 + i % 2] = c[type][i];
}

inline void products() {
  std::vector<float> a(256), b(128), d(3 * 128);
  for (int i = 0; i < 256; ++i) a[i] = static_cast<float>(i * 7 % 15 - 7);
  for (int i = 0; i < 128; ++i) b[i] = static_cast<float>(i * 5 % 13 - 6) / 4;
  launch({1, 32}, multiply, a.data(), b.data(), d.data());
  for (int type = 0; type < 3; ++type)
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 8; ++n) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += a[m * 16 + k] * b[k * 8 + n];
        expect(d[type * 128 + m * 8 + n] == sum, "a product");
      }
}

// What ldmatrix loads is its definition, element by element.
__global__ inline void load_tiles(int* right) {
  FASTRNN_SMEM(buffer);
  auto* shared = reinterpret_cast<uint16_t*>(buffer);  // [4 tiles][8][8]
  for (int i = 0; i < 8; ++i) shared[threadIdx.x * 8 + i] = static_cast<uint16_t>(threadIdx.x * 8 + i);
  __syncwarp();
  uint32_t straight[4], turned[4];
  ldmatrix_x4(straight, shared + threadIdx.x * 8);
  ldmatrix_x4_trans(turned, shared + threadIdx.x * 8);
  const uint32_t row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  bool all = true;
  for (uint32_t tile = 0; tile < 4; ++tile) {
    const uint32_t base = tile * 64;
    all &= straight[tile] == ((base + row * 8 + column) | (base + row * 8 + column + 1) << 16);
    all &= turned[tile] == ((base + column * 8 + row) | (base + (column + 1) * 8 + row) << 16);
  }
  right[threadIdx.x] = all;
}

inline void tiles() {
  std::vector<int> right(32, 0);
  launch({1, 32, 512}, load_tiles, right.data());
  for (const int one : right) expect(one, "a fragment");
}

// Two copies in flight; zeros where there is nothing to copy.
template <bool kWaits>
__global__ inline void copy_ahead(const float* in, float* out, int rounds) {
  FASTRNN_SMEM(buffer);
  float* shared = reinterpret_cast<float*>(buffer);  // [2][threads]
  const auto fetch = [&](int round) {
    cp_async<4>(shared + round % 2 * blockDim.x + threadIdx.x, in + round * blockDim.x + threadIdx.x, threadIdx.x < 40);
    cp_async_commit();
  };
  fetch(0);
  for (int round = 0; round < rounds; ++round) {
    if (round + 1 < rounds) fetch(round + 1);
    if constexpr (kWaits) round + 1 < rounds ? cp_async_wait<1>() : cp_async_wait<0>();
    __syncthreads();
    out[round * blockDim.x + threadIdx.x] = shared[round % 2 * blockDim.x + (threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  if constexpr (!kWaits) cp_async_wait<0>();
}

template <bool kWaits>
void copies() {
  std::vector<float> in(5 * 64), out(5 * 64, -1);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i + 1);
  launch({1, 64, 512}, copy_ahead<kWaits>, in.data(), out.data(), 5);
  for (int i = 0; i < 5 * 64; ++i) {
    const int from = (i % 64 + 1) % 64;
    expect(out[i] == (from < 40 ? in[i / 64 * 64 + from] : 0), "copied");
  }
}

// All blocks add to each other's numbers, a grid barrier between the rounds.
template <bool kWaits>
__global__ inline void rounds_of_all(unsigned* counter, int* values, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    int sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += values[round * gridDim.x + block];
    __syncthreads();
    if (threadIdx.x == 0) {
      values[(round + 1) * gridDim.x + blockIdx.x] = sum + static_cast<int>(blockIdx.x);
      red_release_add(counter, 1);
      Spin spin("the grid", round);
      if constexpr (kWaits)
        while (load_acquire(counter) < (round + 1) * gridDim.x) spin.pause();
    }
    __syncthreads();
  }
}

template <bool kWaits, unsigned kCluster = 1>
void grid_barriers() {
  constexpr int kBlocks = 6, kRounds = 5;
  std::vector<int> values((kRounds + 1) * kBlocks, -1000), expected(values);
  for (int block = 0; block < kBlocks; ++block) values[block] = expected[block] = 1;
  for (int round = 0; round < kRounds; ++round)
    for (int block = 0; block < kBlocks; ++block) {
      expected[(round + 1) * kBlocks + block] = block;
      for (int other = 0; other < kBlocks; ++other)
        expected[(round + 1) * kBlocks + block] += expected[round * kBlocks + other];
    }
  unsigned counter = 0;
  launch({kBlocks, 64, 0, kCluster, true}, rounds_of_all<kWaits>, &counter, values.data(), kRounds);
  expect(values == expected, "sums over the grid");
}

// Each block of a cluster passes what it has to the next, through its shared memory.
struct Ring {
  bool inits = true, fences = true, waits = true, syncs_last = true;
};
struct RingShared {
  MBarrier full[2];
  alignas(16) float value[2][64];
};

__global__ inline void pass_round(const float* in, float* out, int rounds, Ring with) {
  FASTRNN_SMEM(buffer);
  auto& shared = *reinterpret_cast<RingShared*>(buffer);
  const unsigned next = (cluster_rank() + 1) % cluster_size();
  if (threadIdx.x == 0 && (with.inits || cluster_rank() == 0)) {
    for (MBarrier& barrier : shared.full) mbarrier_init(&barrier, 1);
    if (with.fences) fence_mbarrier_init();
  }
  shared.value[0][threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  cluster_sync();
  for (int round = 0; round < rounds; ++round) {
    const float* have = shared.value[round % 2];
    float* give = shared.value[(round + 1) % 2];
    MBarrier* barrier = &shared.full[round % 2];
    __syncthreads();
    if (threadIdx.x == 0) mbarrier_expect_bytes(barrier, 256);
    if (round % 2 == 0) {
      fence_proxy_async();
      __syncthreads();
      if (threadIdx.x == 0) bulk_copy_to_peer(map_to_peer(give, next), have, 256, map_to_peer(barrier, next));
    } else if (threadIdx.x % 4 == 0) {
      uint4 word;
      memcpy(&word, have + threadIdx.x, 16);
      store_async(map_to_peer(give + threadIdx.x, next), map_to_peer(barrier, next), word);
    }
    if (with.waits) {
      Spin spin("its neighbour", round);
      while (!mbarrier_test(barrier, round / 2 % 2)) spin.pause();
    }
    // The neighbour still sends from, or receives in, what the next round overwrites.
    cluster_sync();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared.value[rounds % 2][threadIdx.x];
  if (with.syncs_last) cluster_sync();
}

inline void ring(Ring with) {
  constexpr int kRounds = 7, kCluster = 4;
  std::vector<float> in(8 * 64), out(8 * 64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  launch({8, 64, sizeof(RingShared), kCluster}, pass_round, in.data(), out.data(), kRounds, with);
  for (int block = 0; block < 8; ++block)
    for (int i = 0; i < 64; ++i) {
      const int from = block / kCluster * kCluster + (block + 4 * kCluster - kRounds) % kCluster;
      expect(out[block * 64 + i] == in[from * 64 + i], "passed round the cluster");
    }
}

}  // namespace fastrnn::unit
