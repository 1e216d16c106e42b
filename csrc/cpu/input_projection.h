// The input projection inside the recurrence. Ahead of some steps each thread multiplies their inputs with W_ih, for the samples and
// hidden units that it owns, without a barrier. What it writes is where the recurrent products of those steps begin, and still in
// the second-level cache then, but for the panels that another thread takes.
#pragma once

#include "recurrence_common.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// What the threads of a call share, and the memory of each. A thread's rows are those of one round, some steps of its samples.
template <typename Scalar>
class InputProjection {
  using Acc = typename AccOf<Scalar>::type;
  using Factor = typename FactorOf<Scalar>::type;
  using Element = ElementOf<Factor>;
  static constexpr int kLanes = Vec<Acc>::kLanes;
  // Up to here the product reads x as it is, if it can. Longer rows may well fall on the same lines of the cache; copies do not.
  static constexpr int64_t kMostInPlace = 128;

 public:
  // `group_rows`: the most samples of a thread, of which a few steps make a round; `unit_vectors`: the most vectors of its units.
  void allocate(const LayerForwardParams& p, CellTraits cell, int64_t group_rows, int64_t unit_vectors, int num_threads,
                int64_t cache_bytes, int64_t copies) {
    const Shape& s = p.shape;
    p_ = &p;
    num_gates_ = cell.num_gates;
    width_ = kMaxVectors / num_gates_;
    packed_.allocate(s.directions, s.hidden_size, num_gates_, p.input_size, cache_bytes, copies);
    const int64_t steps = (rows_of_round(packed_.outgrows_cache()) + group_rows - 1) / group_rows;
    const int64_t rows_of_round = (steps < s.steps ? steps : s.steps) * group_rows;
    panel_stride_ = rows_of_round * num_gates_ * kLanes;
    x_stride_ = padded_stride<Element>(p.input_size);
    rows_ = rows_of_round;
    in_place_ = stores_acc<Scalar>() && p.input_size <= kMostInPlace;
    rows_at_ = in_place_ ? 0 : whole_lines(rows_ * x_stride_ * static_cast<int64_t>(sizeof(Element)));
    sums_at_ = rows_at_ + whole_lines(rows_ * static_cast<int64_t>(sizeof(const Element*)));
    memory_.allocate(num_threads, sums_at_ + unit_vectors * panel_stride_ * static_cast<int64_t>(sizeof(Acc)));
    num_vectors_ = num_vectors<Acc>(s.hidden_size);
    bias_.allocate(s.directions * num_vectors_ * num_gates_ * kLanes * static_cast<int64_t>(sizeof(Acc)));
    for (int64_t d = 0; d < s.directions; ++d)
      clear_row<Acc>(bias(d, num_vectors_ - 1), {0, num_gates_}, num_gates_ * kLanes);
    for (int64_t d = 0; d < s.directions; ++d)
      for (int gate = 0; gate < num_gates_; ++gate) add_biases(d, gate, cell.has_extra && gate == num_gates_ - 1);
  }

  // Of a round of `count` samples.
  int64_t steps(int64_t count) const { return rows_ / count; }
  const PackedMatrix<Factor>& packed() const { return packed_; }
  void pack(PackedFor whom, int64_t v, int width) const {
    packed_.pack_rows(typed<Scalar>(p_->w_ih[whom.direction]), whom, v, width);
  }

  // What row `index` of a thread's round gives for the panel of `width` unit vectors from `v` on, of which `first` is the thread's
  // first one: [unit vector][gate][lane] (GateLayout), and so for the next rows.
  Acc* sums(int thread, int64_t index, int64_t first, int64_t v, int width) const {
    return memory_.at<Acc>(thread, sums_at_) + (v - first) * panel_stride_ +
           index * packed_.layout_of(v, width).vectors * kLanes;
  }

  // Row `index` of the next round is a row of x.
  void put_row(int thread, int64_t index, int64_t row) const {
    const Scalar* const x = typed<Scalar>(p_->x) + row * p_->input_size;
    const Element*& place = memory_.at<const Element*>(thread, rows_at_)[index];
    if constexpr (stores_acc<Scalar>()) {
      if (in_place_) {
        place = x;
        return;
      }
    }
    Element* const elements = memory_.at<Element>(thread, 0) + index * x_stride_;
    load_elements<Factor>(x, p_->input_size, elements);
    place = elements;
  }

  // The round: `num_rows` rows, of the units of `units`.
  void multiply(int thread, PackedFor whom, Range units, int64_t num_rows, ProductMode mode) const {
    const Element* const* const x = memory_.at<const Element*>(thread, rows_at_);
    for_each_panel(units, width_, [&](int64_t v, int width) {
      product(packed_.layout_of(v, width).vectors, x, num_rows, packed_.panel(whom, v), p_->input_size,
              {bias(whom.direction, v), 0}, sums(thread, 0, units.begin, v, width), mode);
    });
  }

 private:
  // [gate][lane] of the units of vector `v`, and of the next vectors.
  Acc* bias(int64_t d, int64_t v) const { return bias_.as<Acc>() + (d * num_vectors_ + v) * num_gates_ * kLanes; }

  void add_biases(int64_t d, int gate, bool b_ih_alone) const {
    const int64_t hidden = p_->shape.hidden_size;
    const Scalar* const b_ih = typed<Scalar>(p_->b_ih[d]);
    const Scalar* const b_hh = b_ih_alone ? nullptr : typed<Scalar>(p_->b_hh[d]);
    for_each_vector<Acc>({0, num_vectors<Acc>(hidden)}, hidden, [&](int64_t j, auto lanes) {
      Vec<Acc> sum(0);
      if (b_ih) sum += load(b_ih + gate * hidden + j, lanes);
      if (b_hh) sum += load(b_hh + gate * hidden + j, lanes);
      store(bias(d, j / kLanes) + gate * packed_.layout_of(j / kLanes, 1).stride, sum, lanes);
    });
  }

  const LayerForwardParams* p_ = nullptr;
  int num_gates_ = 1, width_ = 1;
  bool in_place_ = false;
  int64_t rows_ = 0;  // the most of a round
  int64_t panel_stride_ = 0, x_stride_ = 0, num_vectors_ = 0;
  int64_t rows_at_ = 0, sums_at_ = 0;  // of a thread's memory
  PackedMatrix<Factor> packed_;
  ThreadMemory memory_;
  Buffer bias_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
