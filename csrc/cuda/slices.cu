// Launches of slices.cuh.
#include "slices.cuh"

#include "slices.h"

namespace fastrnn::cuda {
namespace {

Launch launch_over(Launch beside, int64_t count, int of_block) {
  beside.threads = kThreads;
  beside.grid = static_cast<int>((count + of_block - 1) / of_block);
  return beside;
}

}  // namespace

template <typename Params>
void launch_order_by_length(Launch beside, OrderedSample* order, const Params& params) {
  launch(launch_over(beside, params.shape.batch, kWarps), order_by_length<Params>, order, params);
}

template <typename Acc>
void launch_sum_slices(Launch beside, Acc* out, const Acc* partial, int64_t num_columns, int64_t num_slices) {
  launch(launch_over(beside, num_columns, kThreads), sum_slices<Acc>, out, partial, num_columns, num_slices);
}

template <typename Acc>
void launch_finish_norms(Launch beside, const BackwardParams& params, const Workspace& workspace) {
  const Shape& shape = params.shape;
  launch(launch_over(beside, shape.directions * shape.steps * shape.batch, kThreads), finish_norms<Acc>, params,
         workspace);
}

template void launch_order_by_length(Launch, OrderedSample*, const ForwardParams&);
template void launch_order_by_length(Launch, OrderedSample*, const BackwardParams&);
template void launch_sum_slices(Launch, float*, const float*, int64_t, int64_t);
template void launch_sum_slices(Launch, double*, const double*, int64_t, int64_t);
template void launch_finish_norms<float>(Launch, const BackwardParams&, const Workspace&);
template void launch_finish_norms<double>(Launch, const BackwardParams&, const Workspace&);

}  // namespace fastrnn::cuda
