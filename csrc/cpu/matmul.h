// The large matrix products of the CPU engine: input projection, weight gradients, input gradient.
#pragma once

#include "../params.h"

namespace fastrnn::cpu {

// out = a b (+ out) (+ each bias), see MatmulParams; out must not overlap the operands. Products of 16-bit values are summed in
// float and rounded once, when they are stored; with AVX512-BF16, subnormal factors and sums of bfloat16 count as 0. `num_threads`:
// the most threads to use, at least 1. The result does not depend on it: two runs on one machine are bit-equal.
void matmul(const MatmulParams& params, int num_threads);

}  // namespace fastrnn::cpu
