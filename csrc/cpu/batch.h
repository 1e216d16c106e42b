// Which sample has which rows, ordered so that a step costs its live samples alone.
#pragma once

#include <cstdint>
#include <vector>

#include "../params.h"

namespace fastrnn::cpu {

// The samples of one row group, longest first: those still running at a step are its first ones.
struct RowGroup {
  int64_t first;  // place of its first sample among all; samples of a group are neighbours
  int64_t count;
  const int64_t* samples;
  const int64_t* lengths;

  int64_t steps() const { return count ? lengths[0] : 0; }
};

class Batch {
 public:
  // Samples are dealt out to the groups in the order of their lengths, so that the groups' work is alike.
  Batch(const Shape& shape, const int64_t* lengths, const int64_t* offsets, int num_groups);

  RowGroup group(int index) const {
    return {starts_[index], starts_[index + 1] - starts_[index], &samples_[starts_[index]], &lengths_[starts_[index]]};
  }
  int64_t row(int64_t t, int64_t sample) const { return offsets_ ? offsets_[t] + sample : t * batch_ + sample; }
  bool padded() const { return offsets_ == nullptr; }

 private:
  int64_t batch_;
  const int64_t* offsets_;
  std::vector<int64_t> starts_;
  std::vector<int64_t> samples_;
  std::vector<int64_t> lengths_;
};

}  // namespace fastrnn::cpu
