// The kernels of gradient clipping: the norm of many tensors together, and their scaling.
//
// A block of threads takes kNormBlock elements of one tensor (norms.h). The tensors come by value with the launch, kMaxSpans at
// a time, so that nothing is copied to the device beforehand. The norm has two stages, without atomics and always in the same
// order: each block writes its sum of squares, taken in double, to `partial`; then one block adds all of them up. Scaling reads
// the norm where it is, on the device, and returns at once where there is nothing to scale: the host never waits for it.
#pragma once

#include "../norms.h"
#include "storage.cuh"

namespace fastrnn::cuda {

constexpr int kNormThreads = 256;
constexpr int kMaxSpans = 128;  // the parameters of a launch are at most 4 KB

struct SpanList {
  void* data[kMaxSpans];
  int64_t size[kMaxSpans];     // elements; 0: data is [1], double, a sum of squares already known
  int first_block[kMaxSpans];  // of this launch
  unsigned char scalar[kMaxSpans];
  int num_spans;
};

struct SumParams {
  SpanList spans;
  double* partial;  // [blocks of this launch]
};

struct FinishParams {
  const double* partial;  // [num_partial]
  int64_t num_partial;
  void* out;  // [1]
  ScalarKind out_scalar;
  bool root;
};

struct ScaleParams {
  SpanList spans;
  const void* norm;  // [1]
  ScalarKind norm_scalar;
  double max_norm;
};
static_assert(sizeof(SumParams) <= 4096 && sizeof(ScaleParams) <= 4096, "more than a launch can carry");

struct NormShared {
  double sums[kNormThreads];
  double factor;
};

// 16 bytes: what a thread reads at a time.
template <typename Scalar>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Scalar);
  Scalar values[kSize];
};

template <typename Function>
FASTRNN_DEVICE auto with_scalar(ScalarKind scalar, Function function) {
  switch (scalar) {
    case ScalarKind::kFloat: return function(float{});
    case ScalarKind::kDouble: return function(double{});
    case ScalarKind::kHalf: return function(__half{});
    default: return function(__nv_bfloat16{});
  }
}

// The last span that begins at or before a block.
FASTRNN_DEVICE int find_span(const SpanList& spans, int block) {
  int low = 0, high = spans.num_spans;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (spans.first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

// A thread's share of a block's elements: first those before the first aligned address and after the last, then packs.
template <typename Scalar, typename OfElement, typename OfPack>
FASTRNN_DEVICE void visit(Scalar* x, int size, OfElement of_element, OfPack of_pack) {
  constexpr int kSize = Pack<Scalar>::kSize;
  const int thread = static_cast<int>(threadIdx.x);
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(x) % sizeof(Pack<Scalar>) / sizeof(Scalar));
  const int to_aligned = (kSize - past) % kSize, head = to_aligned < size ? to_aligned : size;
  const int num_packs = (size - head) / kSize, tail = head + num_packs * kSize;
  if (thread < head) of_element(x[thread]);
  if (thread < size - tail) of_element(x[tail + thread]);
  Pack<Scalar>* const packs = reinterpret_cast<Pack<Scalar>*>(x + head);
  for (int i = thread; i < num_packs; i += kNormThreads) of_pack(packs[i]);
}

template <typename Scalar>
FASTRNN_DEVICE double square(const Scalar& x) {
  const double value = load(&x);
  return value * value;
}

// Of one value of each thread; thread 0 has it. Always the same order.
FASTRNN_DEVICE double sum_of_block(double value, NormShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared.sums[thread] = value;
  for (int half = kNormThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared.sums[thread] += shared.sums[thread + half];
  }
  return thread == 0 ? shared.sums[0] : 0;
}

__global__ void __launch_bounds__(kNormThreads) norm_partial(SumParams p) {
  FASTRNN_SMEM(buffer);
  NormShared& shared = *reinterpret_cast<NormShared*>(buffer);
  const int block = static_cast<int>(blockIdx.x), span = find_span(p.spans, block);
  void* const data = p.spans.data[span];
  const int64_t start = int64_t{block - p.spans.first_block[span]} * kNormBlock, size = p.spans.size[span];
  if (size == 0) {
    if (threadIdx.x == 0) p.partial[block] = *static_cast<const double*>(data);
    return;
  }
  const int count = static_cast<int>(size - start < kNormBlock ? size - start : kNormBlock);
  const double own = with_scalar(static_cast<ScalarKind>(p.spans.scalar[span]), [&](auto scalar) {
    using Scalar = decltype(scalar);
    double sum = 0;
    visit(
        static_cast<Scalar*>(data) + start, count, [&](const Scalar& x) { sum += square(x); },
        [&](const Pack<Scalar>& pack) {
          const Pack<Scalar> values = pack;  // one load
          FASTRNN_UNROLL
          for (int i = 0; i < Pack<Scalar>::kSize; ++i) sum += square(values.values[i]);
        });
    return sum;
  });
  const double total = sum_of_block(own, shared);
  if (threadIdx.x == 0) p.partial[block] = total;
}

// One block.
__global__ void __launch_bounds__(kNormThreads) norm_finish(FinishParams p) {
  FASTRNN_SMEM(buffer);
  NormShared& shared = *reinterpret_cast<NormShared*>(buffer);
  double own = 0;
  for (int64_t i = threadIdx.x; i < p.num_partial; i += kNormThreads) own += p.partial[i];
  const double total = sum_of_block(own, shared);
  if (threadIdx.x != 0) return;
  const double result = p.root ? sqrt(total) : total;
  with_scalar(p.out_scalar, [&](auto scalar) {
    using Scalar = decltype(scalar);
    store(static_cast<Scalar*>(p.out), static_cast<AccOf<Scalar>>(result));
  });
}

// min(1, max_norm / (norm + 1e-6)) in norm's precision, as torch computes it; NaN for NaN.
FASTRNN_DEVICE double clip_factor(const ScaleParams& p) {
  return with_scalar(p.norm_scalar, [&](auto scalar) -> double {
    using Scalar = decltype(scalar);
    const double factor = p.max_norm / (double{load(static_cast<const Scalar*>(p.norm))} + 1e-6);
    return factor >= 1 ? 1.0 : double{rounded<Scalar>(static_cast<AccOf<Scalar>>(factor))};
  });
}

__global__ void __launch_bounds__(kNormThreads) norm_scale(ScaleParams p) {
  FASTRNN_SMEM(buffer);
  NormShared& shared = *reinterpret_cast<NormShared*>(buffer);
  if (threadIdx.x == 0) shared.factor = clip_factor(p);
  __syncthreads();
  const double factor = shared.factor;
  if (factor == 1) return;
  const int block = static_cast<int>(blockIdx.x), span = find_span(p.spans, block);
  const int64_t start = int64_t{block - p.spans.first_block[span]} * kNormBlock, size = p.spans.size[span];
  const int count = static_cast<int>(size - start < kNormBlock ? size - start : kNormBlock);
  with_scalar(static_cast<ScalarKind>(p.spans.scalar[span]), [&](auto scalar) {
    using Scalar = decltype(scalar);
    const auto scale = [f = static_cast<AccOf<Scalar>>(factor)](Scalar& x) { store(&x, load(&x) * f); };
    visit(static_cast<Scalar*>(p.spans.data[span]) + start, count, scale, [&](Pack<Scalar>& pack) {
      Pack<Scalar> values = pack;  // one load, one store
      FASTRNN_UNROLL
      for (int i = 0; i < Pack<Scalar>::kSize; ++i) scale(values.values[i]);
      pack = values;
    });
  });
}

}  // namespace fastrnn::cuda
