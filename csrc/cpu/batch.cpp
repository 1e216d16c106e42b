#include "batch.h"

#include <algorithm>
#include <numeric>

namespace fastrnn::cpu {
namespace {

std::vector<int64_t> lengths_of(const Shape& shape, const int64_t* lengths, const int64_t* offsets) {
  std::vector<int64_t> result(shape.batch, shape.steps);
  if (lengths)
    for (int64_t b = 0; b < shape.batch; ++b) result[b] = std::clamp<int64_t>(lengths[b], 0, shape.steps);
  // Packed rows tell the lengths by themselves: step t has a row for each sample that reaches it.
  if (offsets) {
    for (int64_t t = 0; t < shape.steps; ++t) {
      const int64_t end = t + 1 < shape.steps ? offsets[t + 1] : shape.rows;
      for (int64_t b = end - offsets[t]; b < shape.batch; ++b) result[b] = std::min(result[b], t);
    }
  }
  return result;
}

// Of a group of `count` samples: a quarter, so that it may be halved twice.
int64_t rows_of_atom(int64_t count, int64_t unit) {
  constexpr int64_t kAtoms = 4;
  if (unit == 0) return std::max<int64_t>(count, 1);
  const int64_t rows = (count + kAtoms - 1) / kAtoms;
  return std::max<int64_t>((rows + unit - 1) / unit * unit, unit);
}

}  // namespace

Batch::Batch(const Shape& shape, const int64_t* lengths, const int64_t* offsets, int num_groups, int64_t atom_unit,
             int64_t gap)
    : batch_(shape.batch), offsets_(offsets), atom_unit_(atom_unit), gap_(gap) {
  const std::vector<int64_t> length = lengths_of(shape, lengths, offsets);
  std::vector<int64_t> order(shape.batch);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  // One more than needed, so that an empty last group has an address.
  samples_.reserve(shape.batch + 1);
  const int64_t all_steps = std::accumulate(length.begin(), length.end(), int64_t{0});
  int64_t steps = 0;
  for (int group = 0; group < num_groups; ++group) {
    starts_.push_back(static_cast<int64_t>(samples_.size()));
    const bool last = group == num_groups - 1;
    for (int64_t i; (i = static_cast<int64_t>(samples_.size())) < shape.batch;) {
      if (!last && steps * num_groups >= all_steps * (group + 1)) break;
      steps += length[order[i]];
      samples_.push_back(order[i]);
    }
  }
  starts_.push_back(static_cast<int64_t>(samples_.size()));
  samples_.push_back(0);
  for (int64_t sample : samples_) lengths_.push_back(shape.batch ? length[sample] : 0);
  for (int index = 0; index < num_groups; ++index) {
    first_atoms_.push_back(num_atoms_);
    num_atoms_ += group(index).num_atoms();
    most_rows_ = std::max(most_rows_, group(index).count);
  }
}

Batch::~Batch() = default;

RowGroup Batch::group(int index) const {
  const int64_t first = starts_[index], count = starts_[index + 1] - first;
  return {first + index * gap_,           count, &samples_[first], &lengths_[first], first_atoms_[index],
          rows_of_atom(count, atom_unit_)};
}

}  // namespace fastrnn::cpu
