// Everything of the CUDA dialect that kernels use beyond plain C++, one instruction a function: the only file with PTX in it.
// The tests run the same kernels on the CPU with a file of the same name in its place (tests/emulator/intrinsics.cuh).
//
// Fragments of the matrix instructions, for lane = 4 * group + quad (group 0..7, quad 0..3):
//   c[0], c[1]  row `group`, columns 2 * quad and 2 * quad + 1;  c[2], c[3]  the same of row `group` + 8
//   16-bit a, b: a[0] columns 2 * quad, + 1 of row `group`; a[1] of row `group` + 8; a[2], a[3] the columns + 8;
//                b[0] rows 2 * quad, + 1 of column `group`; b[1] the rows + 8
//   tf32   a, b: a[0] column `quad` of row `group`; a[1] of row `group` + 8; a[2], a[3] the column + 4;
//                b[0] row `quad` of column `group`; b[1] the row + 4
#pragma once

#include <cstdint>
#include <cstdio>

#define FASTRNN_DEVICE __device__ __forceinline__
// The kernel's shared memory: one buffer whose size the launch decides.
#define FASTRNN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#define FASTRNN_UNROLL _Pragma("unroll")
// For loops whose length is known at run time: to the compiler's taste they would take more registers than there are.
#define FASTRNN_NO_UNROLL _Pragma("unroll 1")
#define FASTRNN_PRAGMA(text) _Pragma(#text)
#define FASTRNN_UNROLL_BY(count) FASTRNN_PRAGMA(unroll count)

namespace fastrnn::cuda {

// What is being compiled for, 80 for compute capability 8.0.
#ifdef __CUDA_ARCH__
constexpr int kArch = __CUDA_ARCH__ / 10;
#else
constexpr int kArch = 90;
#endif

// ------------------------------------------------------------------------------------------------ matrix instructions

FASTRNN_DEVICE void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FASTRNN_DEVICE void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Operands are the bits of floats that round_to_tf32 has rounded: the instruction itself would truncate.
FASTRNN_DEVICE void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FASTRNN_DEVICE float round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// An address in the block's own shared memory, as instructions of that state space want it.
using SharedAddress = uint32_t;
FASTRNN_DEVICE SharedAddress shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
FASTRNN_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same pointer, into the block's own shared memory, of which the compiler may not know that it leads there: what it reads through
// the result it then reads by instructions of that state space.
template <typename T>
FASTRNN_DEVICE const T* in_shared(const T* shared) {
  SharedAddress address = shared_address(shared);
  asm("" : "+r"(address));  // else the way there and back would be left out
  return static_cast<const T*>(__cvta_shared_to_generic(address));
}

// ------------------------------------------------------------------------------------------------ special functions

// Two to the power of x within two units in the last place.
FASTRNN_DEVICE float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x within a unit in the last place; a subnormal x counts as zero, and so does a subnormal result.
FASTRNN_DEVICE float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ------------------------------------------------------------------------------------------------ asynchronous copies

// Copies 16 bytes past L1, so that what other blocks wrote is seen; zeros where not `valid`.
FASTRNN_DEVICE void cp_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
FASTRNN_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
FASTRNN_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --------------------------------------------------------------------------------- between the blocks of a grid, by L2

FASTRNN_DEVICE void red_release_add(unsigned* counter, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
FASTRNN_DEVICE unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// Past L1, which knows nothing of other blocks' stores.
FASTRNN_DEVICE double load_l2(const double* p) {
  double value;
  asm volatile("ld.global.cg.f64 %0, [%1];" : "=d"(value) : "l"(p) : "memory");
  return value;
}

// Several threads may raise the same flag.
FASTRNN_DEVICE void set_flag(bool* flag) {
  asm volatile("st.relaxed.gpu.global.u8 [%0], %1;" ::"l"(flag), "r"(1) : "memory");
}

// Called in every loop that waits for another block. In a check build (-DFASTRNN_CHECK_SPINS) a wait of ten seconds ends in a trap
// that names the block and the turn.
#ifdef FASTRNN_CHECK_SPINS
constexpr bool kChecksSpins = true;
#else
constexpr bool kChecksSpins = false;
#endif
class Spin {
 public:
  FASTRNN_DEVICE explicit Spin(const char* what, int64_t turn) : what_(what), turn_(turn) {}
  FASTRNN_DEVICE void pause() {
    if constexpr (kChecksSpins) {
      constexpr unsigned long long kMostNanoseconds = 10'000'000'000;
      const unsigned long long now = nanoseconds();
      if (began_ == 0) began_ = now;
      if (now - began_ < kMostNanoseconds) return;
      printf("fastrnn: block %u waits for %s at turn %lld\n", blockIdx.x, what_, static_cast<long long>(turn_));
      asm volatile("trap;");
    }
  }

 private:
  FASTRNN_DEVICE static unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
  }

  const char* what_;
  int64_t turn_;
  unsigned long long began_ = 0;
};

// ---------------------------------------------------------------------------------- between the blocks of a cluster

// All threads of all blocks of the cluster meet; what they wrote before is seen after. The threads of a warp may come apart.
FASTRNN_DEVICE void cluster_sync() {
  __syncwarp();  // the instructions want warps that are together
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The place in the shared memory of the block `rank` that `own_shared` is in this block's.
FASTRNN_DEVICE SharedAddress map_to_peer(const void* own_shared, unsigned rank) {
  uint32_t peer;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(shared_address(own_shared)), "r"(rank));
  return peer;
}

// Counts arrivals and bytes; a phase ends when both have come.
struct alignas(8) MBarrier {
  uint64_t state;
};

FASTRNN_DEVICE void mbarrier_init(MBarrier* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// Makes inits seen by the other blocks of the cluster; a cluster_sync has to follow.
FASTRNN_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and tells how many bytes the phase is to receive.
FASTRNN_DEVICE void mbarrier_expect_bytes(MBarrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Whether the phase of this parity has ended.
FASTRNN_DEVICE bool mbarrier_test(MBarrier* barrier, unsigned parity) {
  uint32_t done;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// Stores in a peer's shared memory and, when the bytes have landed, counts them at a barrier of the same peer.
FASTRNN_DEVICE void store_async(SharedAddress peer, SharedAddress peer_barrier, uint4 value) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(peer),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(peer_barrier)
               : "memory");
}
FASTRNN_DEVICE void store_async(SharedAddress peer, SharedAddress peer_barrier, uint2 value) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(peer),
               "r"(value.x), "r"(value.y), "r"(peer_barrier)
               : "memory");
}

}  // namespace fastrnn::cuda
