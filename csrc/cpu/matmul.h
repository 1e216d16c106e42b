// The large matrix products of the CPU engine: weight gradients; the input projection and the input gradient where the recurrence does
// not do them by itself.
#pragma once

#include "../params.h"

namespace fastrnn::cpu {

constexpr int64_t kFew = 12;  // rows or columns up to which packing the other operand is not worth its time
constexpr int64_t kProductsPerThread = 200'000;  // that a thread is worth waking for: some 5 microseconds

// out = a b (+ out) (+ each bias, broadcast over rows). Strides in elements; either stride of a matrix is 1.
struct MatmulParams {
  int64_t m, n, k;
  const void* a;  // scalar [m, k]
  int64_t a_row, a_col;
  const void* b;  // scalar [k, n]
  int64_t b_row, b_col;
  const void* bias[2];  // scalar [n], may be nullptr
  void* out;            // scalar [m, n], unit column stride
  int64_t out_row;
  bool accumulate;
  double* squares;  // [1]  out's sum of squares, as stored, is added to it; may be nullptr
  ScalarKind scalar;
};

// `out` must not overlap the operands. Products of 16-bit values are summed in float and rounded once, when they are stored; with
// AVX512-BF16, subnormal factors and sums of bfloat16 count as 0. `num_threads`: the most threads to use, at least 1. The result does
// not depend on it: two runs on one machine are bit-equal.
void matmul(const MatmulParams& params, int num_threads);

// Up to two products with the same a^T, which is packed once: each out is the sum over k of the outer products of a's row k and b's.
// Rows lie anywhere. They may be divided into runs, each of which is summed by itself before the runs' sums are added; of n threads,
// thread i begins with run i * num_runs / n, of which it should have made the rows. The result does not depend on num_threads, but
// on the runs. Products with kFew rows or columns at most have one run.
struct JointMatmulParams {
  struct Part {
    int64_t n;
    const void* const* b;  // [k] rows, scalar [n]
    void* out;             // scalar [m, n], contiguous
    double* squares;       // as MatmulParams'
  };
  int64_t m, k;
  const void* const* a;  // [k] rows, scalar [a_first + m] at least
  int64_t a_first;       // what is multiplied begins there
  int num_parts;
  Part parts[2];
  int num_runs;             // at least 1
  const int64_t* run_ends;  // [num_runs] rising, the last k; a single run needs none
  ScalarKind scalar;
};

void joint_matmul(const JointMatmulParams& params, int num_threads);

}  // namespace fastrnn::cpu
