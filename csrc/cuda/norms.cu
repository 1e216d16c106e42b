// Launches of norms.cuh.
#include "norms.cuh"

#include <algorithm>

#include "launch.cuh"
#include "norms.h"

namespace fastrnn::cuda {
namespace {

Launch launch_of(const char* kernel, size_t num_tensors, int64_t num_blocks, cudaStream_t stream) {
  Launch launch{};
  launch.what = std::string(kernel) + " of " + std::to_string(num_tensors) + " tensors";
  launch.stream = stream;
  launch.grid = static_cast<int>(num_blocks);
  launch.threads = kNormThreads;
  launch.shared_bytes = sizeof(NormShared);
  return launch;
}

// Cuts spans into lists that a launch can carry; function(list, number of its blocks). A span of size 0 has one block.
template <typename Function>
void for_each_list(const std::vector<Span>& spans, Function function) {
  for (size_t first = 0; first < spans.size(); first += kMaxSpans) {
    SpanList list{};
    list.num_spans = static_cast<int>(std::min<size_t>(kMaxSpans, spans.size() - first));
    int64_t num_blocks = 0;
    for (int i = 0; i < list.num_spans; ++i) {
      const Span& span = spans[first + static_cast<size_t>(i)];
      list.data[i] = span.data;
      list.size[i] = span.size;
      list.scalar[i] = static_cast<unsigned char>(span.scalar);
      list.first_block[i] = static_cast<int>(num_blocks);
      num_blocks += std::max<int64_t>(1, num_norm_blocks(span.size));
    }
    function(list, num_blocks);
  }
}

}  // namespace

void sum_of_squares(const NormParams& params, cudaStream_t stream) {
  std::vector<Span> spans = params.spans;
  for (const double* sum : params.known) spans.push_back({const_cast<double*>(sum), 0, ScalarKind::kDouble});
  int64_t num_partial = 0;
  for_each_list(spans, [&](const SpanList& list, int64_t num_blocks) {
    launch(launch_of("norm_partial", spans.size(), num_blocks, stream), norm_partial,
           SumParams{list, params.partial + num_partial});
    num_partial += num_blocks;
  });
  launch(launch_of("norm_finish", spans.size(), 1, stream), norm_finish,
         FinishParams{params.partial, num_partial, params.out, params.out_scalar, params.root});
}

void clip(const ClipParams& params, cudaStream_t stream) {
  for_each_list(params.spans, [&](const SpanList& list, int64_t num_blocks) {
    launch(launch_of("norm_scale", params.spans.size(), num_blocks, stream), norm_scale,
           ScaleParams{list, params.norm, params.norm_scalar, params.max_norm});
  });
}

}  // namespace fastrnn::cuda
