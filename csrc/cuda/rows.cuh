// Where the steps of a sample lie in memory (params.h: Rows).
#pragma once

#include "../params.h"
#include "storage.cuh"
#include "tiling.h"

namespace fastrnn::cuda {

struct Rows {
  int64_t steps, batch, rows;
  const int64_t* lengths;
  const int64_t* offsets;

  template <typename Params>
  FASTRNN_DEVICE static Rows of(const Params& params) {
    return {params.shape.steps, params.shape.batch, params.shape.rows, params.lengths, params.offsets};
  }

  FASTRNN_DEVICE int64_t length(int64_t sample) const {
    if (lengths) {
      const int64_t length = lengths[sample];
      return length < 0 ? 0 : length > steps ? steps : length;
    }
    if (!offsets) return steps;
    // Steps have ever fewer rows: the first that has none for this sample.
    int64_t length = 0, end = steps;
    while (length < end) {
      const int64_t step = (length + end) / 2, next = step + 1 < steps ? offsets[step + 1] : rows;
      if (sample < next - offsets[step]) {
        length = step + 1;
      } else {
        end = step;
      }
    }
    return length;
  }

  // Who has a place in the slices; past the batch nobody, whom steps do not reach.
  FASTRNN_DEVICE OrderedSample sample_at(int place, const OrderedSample* order) const {
    if (place >= batch) return {place, 0};
    return order ? order[place] : OrderedSample{place, static_cast<int>(length(place))};
  }

  FASTRNN_DEVICE int index_at(int place, const OrderedSample* order) const {
    return order && place < batch ? order[place].index : place;
  }

  FASTRNN_DEVICE int64_t row(int64_t step, int64_t sample) const {
    return offsets ? offsets[step] + sample : step * batch + sample;
  }
};

}  // namespace fastrnn::cuda
