// Which sample has which rows, ordered so that a step costs its live samples alone.
#pragma once

#include <cstdint>
#include <vector>

#include "../params.h"

namespace fastrnn::cpu {

// The samples of one row group, longest first: those still running at a step are its first ones. It may be divided between two
// of its atoms, runs of `atom_rows` samples (the last may have fewer).
struct RowGroup {
  int64_t first;  // place of its first sample in scratch memory; samples of a group are neighbours there
  int64_t count;
  const int64_t* samples;
  const int64_t* lengths;
  int64_t first_atom;  // number among all
  int64_t atom_rows;

  int64_t steps() const { return count ? lengths[0] : 0; }
  int64_t num_atoms() const { return (count + atom_rows - 1) / atom_rows; }
  // Where an atom begins that leaves about half of `rows` on each side; 0: there is none.
  int64_t middle(int64_t rows) const {
    const int64_t nearest = (rows / 2 + atom_rows / 2) / atom_rows * atom_rows;
    return nearest < rows ? nearest : 0;
  }
  // All but its first `rows`, whole atoms.
  RowGroup after(int64_t rows) const {
    return {first + rows, count - rows, samples + rows, lengths + rows, first_atom + rows / atom_rows, atom_rows};
  }
};

class Batch {
 public:
  // In the order of their lengths, each group gets neighbours which have about as many steps together as those of any other: what one
  // core reads and writes lies apart from what others do, in scratch memory by `gap` places. Atoms are multiples of `atom_unit`
  // samples; 0: a group is one atom.
  Batch(const Shape& shape, const int64_t* lengths, const int64_t* offsets, int num_groups, int64_t atom_unit,
        int64_t gap);

  ~Batch();  // in batch.cpp, so that no copy is of one instruction set

  RowGroup group(int index) const;
  int64_t num_atoms() const { return num_atoms_; }
  int64_t num_places() const { return batch_ + (static_cast<int64_t>(first_atoms_.size()) - 1) * gap_; }
  int64_t most_rows() const { return most_rows_; }  // of a group, at least 1
  int64_t row(int64_t t, int64_t sample) const { return offsets_ ? offsets_[t] + sample : t * batch_ + sample; }
  bool padded() const { return offsets_ == nullptr; }

 private:
  int64_t batch_;
  const int64_t* offsets_;
  std::vector<int64_t> starts_;
  std::vector<int64_t> first_atoms_;
  int64_t atom_unit_, gap_, num_atoms_ = 0, most_rows_ = 1;
  std::vector<int64_t> samples_;
  std::vector<int64_t> lengths_;
};

}  // namespace fastrnn::cpu
