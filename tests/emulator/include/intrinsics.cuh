// The twin of csrc/cuda/intrinsics.cuh: the same names without a GPU, and some that no kernel uses yet.
//
// Where the hardware leaves something open, this chooses what hurts a wrong kernel: copies land late and leave poison until
// then, operands that should have been rounded are truncated, words written one after the other are seen so.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cmath>
#include <cstring>

#define FASTRNN_DEVICE inline
#define FASTRNN_SMEM(name) unsigned char* const name = ::fastrnn::emulator::self().block->shared_memory
#define FASTRNN_UNROLL
#define FASTRNN_NO_UNROLL
#define FASTRNN_UNROLL_BY(count)

namespace fastrnn::emulator {

// The fragments of mma.m16n8k{8,16}: d = a b + c, a [16, k], b [k, 8]. `element(word, half)` reads an operand's value.
struct MmaLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

template <int kDepth, int kPerWord, typename Element>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* what, Site site, Element element) {
  typedef float Quad __attribute__((vector_size(16)));  // what every processor of 64 bits has
  MmaLane mine{c, a, b};
  collective(kFullMask, mine, what, site, [&](MmaLane* const(&lanes)[kWarpSize]) {
    constexpr int kHalf = kDepth / 2;
    float full_a[16][kDepth];
    alignas(16) float full_b[kDepth][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, first = lane % 4 * kPerWord;
      for (int i = 0; i < kPerWord; ++i) {
        for (int word = 0; word < 4; ++word)
          full_a[group + word % 2 * 8][first + i + word / 2 * kHalf] = element(lanes[lane]->a[word], i);
        for (int word = 0; word < 2; ++word) full_b[first + i + word * kHalf][group] = element(lanes[lane]->b[word], i);
      }
    }
    for (int row = 0; row < 16; ++row) {
      Quad low{}, high{};
      for (int k = 0; k < kDepth; ++k) {
        const Quad* quads = reinterpret_cast<const Quad*>(full_b[k]);
        low += full_a[row][k] * quads[0];
        high += full_a[row][k] * quads[1];
      }
      for (int column = 0; column < 8; ++column)
        lanes[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2] += column < 4 ? low[column] : high[column - 4];
    }
  });
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Bf16Of {
  float operator()(uint32_t word, int half) const { return from_bits(half ? word & 0xffff0000u : word << 16); }
};

struct F16Of {
  float operator()(uint32_t word, int half) const {
    const uint32_t bits = half ? word >> 16 : word & 0xffff, sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
    if ((bits & 0x7c00) == 0x7c00) return from_bits(sign | 0x7f800000u | rest);
    // Denormals too: the difference of the exponents' biases, 127 - 15, comes in by a product.
    return from_bits(sign | 0x3f800000u) * (from_bits(rest) * 0x1p112f);
  }
};

// The hardware ignores the low bits: an operand that nobody has rounded is truncated.
struct Tf32Of {
  float operator()(uint32_t word, int) const { return from_bits(word & 0xffffe000u); }
};

// Words are atomic, and nothing else is.
template <typename T>
void copy_by_words(void* to, const void* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  for (size_t i = 0; i < sizeof(T) / 4; ++i) {
    auto& source = const_cast<uint32_t&>(static_cast<const uint32_t*>(from)[i]);
    const uint32_t word = std::atomic_ref<uint32_t>(source).load(std::memory_order_relaxed);
    std::atomic_ref<uint32_t>(static_cast<uint32_t*>(to)[i]).store(word, std::memory_order_relaxed);
  }
}

}  // namespace fastrnn::emulator

namespace fastrnn::cuda {

using emulator::Site;

constexpr int kArch = 90;

// -------------------------------------------------------------------------------------------------- tensor cores

inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Site site = Site::current()) {
  emulator::mma<16, 2>(c, a, b, "mma_m16n8k16_bf16", site, emulator::Bf16Of());
}
inline void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Site site = Site::current()) {
  emulator::mma<16, 2>(c, a, b, "mma_m16n8k16_f16", site, emulator::F16Of());
}
inline void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Site site = Site::current()) {
  emulator::mma<8, 1>(c, a, b, "mma_m16n8k8_tf32", site, emulator::Tf32Of());
}

// To nearest, ties away from zero.
inline float round_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isfinite(value)) bits = (bits + 0x1000) & 0xffffe000u;
  return emulator::from_bits(bits);
}

namespace detail {

template <typename Place>
void ldmatrix_x4(uint32_t (&r)[4], const void* row, const char* what, Site site, Place place) {
  struct Lane {
    uint16_t row[8];
    uint32_t* r;
  } mine;
  emulator::check_shared(row, 16, 16, what, site);
  std::memcpy(mine.row, row, 16);
  mine.r = r;
  emulator::collective(emulator::kFullMask, mine, what, site, [&](Lane* const(&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane)
      for (int tile = 0; tile < 4; ++tile) {
        uint32_t word = 0;
        for (int half = 0; half < 2; ++half) {
          const auto [from, column] = place(lane, half);
          word |= uint32_t{lanes[tile * 8 + from]->row[column]} << 16 * half;
        }
        lanes[lane]->r[tile] = word;
      }
  });
}

struct Place {
  int row, column;
};

}  // namespace detail

// Four 8 x 8 tiles of 16 bits: lane l names row l % 8 of tile l / 8.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  detail::ldmatrix_x4(r, row, "ldmatrix_x4", site,
                      [](int lane, int half) { return detail::Place{lane / 4, lane % 4 * 2 + half}; });
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  detail::ldmatrix_x4(r, row, "ldmatrix_x4_trans", site,
                      [](int lane, int half) { return detail::Place{lane % 4 * 2 + half, lane / 4}; });
}

template <typename T>
const T* in_shared(const T* shared, Site site = Site::current()) {
  emulator::check_shared(shared, sizeof(T), alignof(T), "the pointer", site);
  return shared;
}

// ------------------------------------------------------------------------------------------------------- cp.async

template <int kBytes = 16>
void cp_async(void* shared, const void* global, bool valid, Site site = Site::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::cp_async(shared, global, kBytes, valid, site);
}
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int kPending>
void cp_async_wait() {
  emulator::cp_async_wait(kPending);
}

// -------------------------------------------------------------------------------------------------------- clusters

using SharedAddress = uint32_t;

struct alignas(8) MBarrier {
  uint64_t state;
};

inline unsigned cluster_rank() { return emulator::self().block->rank; }
inline unsigned cluster_size() { return emulator::self().block->cluster->size; }
inline void cluster_sync(Site site = Site::current()) { emulator::sync_cluster(site); }

inline SharedAddress map_to_peer(const void* own_shared, unsigned rank, Site site = Site::current()) {
  return emulator::cluster_address(own_shared, rank, site);
}

inline void store_async(SharedAddress peer, SharedAddress peer_barrier, uint4 value, Site site = Site::current()) {
  emulator::store_to_peer(peer, peer_barrier, &value, sizeof value, site);
}
inline void store_async(SharedAddress peer, SharedAddress peer_barrier, uint2 value, Site site = Site::current()) {
  emulator::store_to_peer(peer, peer_barrier, &value, sizeof value, site);
}
inline void store_async(SharedAddress peer, SharedAddress peer_barrier, uint32_t value, Site site = Site::current()) {
  emulator::store_to_peer(peer, peer_barrier, &value, sizeof value, site);
}
inline void bulk_copy_to_peer(SharedAddress peer, const void* own_shared, unsigned bytes, SharedAddress peer_barrier,
                              Site site = Site::current()) {
  emulator::copy_to_peer(peer, peer_barrier, own_shared, bytes, site);
}

inline void mbarrier_init(MBarrier* barrier, unsigned count, Site site = Site::current()) {
  emulator::mbarrier_init(&barrier->state, count, site);
}
inline void mbarrier_expect_bytes(MBarrier* barrier, unsigned bytes, Site site = Site::current()) {
  emulator::mbarrier_arrive_and_expect(&barrier->state, bytes, site);
}
inline bool mbarrier_test(MBarrier* barrier, unsigned parity, Site site = Site::current()) {
  return emulator::mbarrier_try_wait(&barrier->state, parity, site);
}
inline void fence_mbarrier_init() { emulator::self().has_unfenced_init = false; }
inline void fence_proxy_async() {}

// --------------------------------------------------------------------------------------------------- global memory

inline void red_release_add(unsigned* global, unsigned value) {
  std::atomic_ref<unsigned>(*global).fetch_add(value, std::memory_order_release);
  emulator::note_progress();
  emulator::maybe_switch();
}
inline unsigned load_acquire(const unsigned* global) {
  return std::atomic_ref<unsigned>(*const_cast<unsigned*>(global)).load(std::memory_order_acquire);
}

template <typename T>
T load_l2(const T* from) {
  T value;
  emulator::copy_by_words<T>(&value, from);
  return value;
}

inline void set_flag(bool* flag) {
  std::atomic_ref<bool>(*flag).store(true, std::memory_order_relaxed);
  emulator::note_progress();
}

// Others run first; a loop in which nothing ever changes is an error.
class Spin {
 public:
  explicit Spin(const char* what, int64_t, Site site = Site::current()) : what_(what), site_(site) {}
  void pause() { emulator::spin(what_, site_); }

 private:
  const char* what_;
  Site site_;
};

}  // namespace fastrnn::cuda
