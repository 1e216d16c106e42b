// The norm of many tensors together, and their scaling: one parallel region each.
#pragma once

#include "../norms.h"

namespace fastrnn::cpu {

// The result does not depend on `num_threads`.
void sum_of_squares(const NormParams& params, int num_threads);

void clip(const ClipParams& params, int num_threads);

}  // namespace fastrnn::cpu
