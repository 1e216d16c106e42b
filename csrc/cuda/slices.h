// Launches of slices.cuh, in the name and on the stream of `beside`. Params: ForwardParams or BackwardParams; Acc: float or double.
#pragma once

#include "../params.h"
#include "launch.cuh"
#include "tiling.h"

namespace fastrnn::cuda {

template <typename Params>
void launch_order_by_length(Launch beside, OrderedSample* order, const Params& params);

template <typename Acc>
void launch_sum_slices(Launch beside, Acc* out, const Acc* partial, int64_t num_columns, int64_t num_slices);

template <typename Acc>
void launch_finish_norms(Launch beside, const BackwardParams& params, const Workspace& workspace);

}  // namespace fastrnn::cuda
