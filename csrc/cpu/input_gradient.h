// The gradient of the input inside the recurrence. After some steps each thread multiplies the gate gradients of its samples with W_ih,
// while they are still in its second-level cache.
#pragma once

#include "recurrence_common.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// What the threads of a call share, and the memory of each. A thread's rows are those of one round, some steps of its samples.
template <typename Scalar>
class InputGradient {
  using Acc = typename AccOf<Scalar>::type;
  using Factor = typename FactorOf<Scalar>::type;
  using Element = ElementOf<Factor>;
  static constexpr int kLanes = Vec<Acc>::kLanes;

 public:
  // `group_rows`: the most samples of a thread.
  void allocate(const LayerBackwardParams& p, int num_gates, int64_t group_rows, int num_threads, int64_t cache_bytes,
                int64_t copies) {
    p_ = &p;
    num_k_ = num_gates * p.shape.hidden_size;
    packed_.allocate(p.shape.directions, p.input_size, 1, num_k_, cache_bytes, copies);
    rows_ = std::max(rows_of_round(packed_.outgrows_cache()), group_rows);
    gates_stride_ = stores_acc<Scalar>() ? 0 : padded_stride<Element>(num_k_);
    sums_at_ = whole_lines(rows_ * static_cast<int64_t>(sizeof(Scalar*)));
    gates_at_ = sums_at_ + whole_lines(rows_ * kMaxVectors * kLanes * static_cast<int64_t>(sizeof(Acc)));
    pointers_at_ = gates_at_ + whole_lines(rows_ * gates_stride_ * static_cast<int64_t>(sizeof(Element)));
    memory_.allocate(num_threads, pointers_at_ + rows_ * static_cast<int64_t>(sizeof(const Element*)));
  }

  int64_t rows() const { return rows_; }  // the most of a round
  const PackedMatrix<Factor>& packed() const { return packed_; }
  void pack(PackedFor whom, int64_t v, int width) const {
    packed_.pack_columns(typed<Scalar>(p_->w_ih[whom.direction]), whom, v, width);
  }

  // Row `index` of a thread's next round has these gate gradients, and is row `row` of grad_x.
  void put_row(int thread, int64_t index, const Scalar* grad_gates, int64_t row) const {
    memory_.at<Scalar*>(thread, 0)[index] = typed<Scalar>(p_->grad_x) + row * p_->input_size;
    const Element*& place = memory_.at<const Element*>(thread, pointers_at_)[index];
    if constexpr (stores_acc<Scalar>()) {
      place = grad_gates;
    } else {
      Element* const elements = memory_.at<Element>(thread, gates_at_) + index * gates_stride_;
      load_elements<Factor>(grad_gates, num_k_, elements);
      place = elements;
    }
  }

  // The round. `splits_k`: ProductMode's.
  void multiply(int thread, PackedFor whom, int64_t num_rows, bool splits_k) const {
    const int64_t size = p_->input_size;
    Scalar* const* const out = memory_.at<Scalar*>(thread, 0);
    Acc* const sums = memory_.at<Acc>(thread, sums_at_);
    for_each_panel({0, num_vectors<Acc>(size)}, kMaxVectors, [&](int64_t v, int width) {
      product(width, memory_.at<const Element*>(thread, pointers_at_), num_rows, packed_.panel(whom, v), num_k_, {},
              sums, {packed_.outgrows_cache(), splits_k});
      for (int64_t i = 0; i < num_rows; ++i)
        for_each_vector<Acc>({v, v + width}, size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
          store(out[i] + j, load(sums + (i * width - v) * kLanes + j, Whole{}), lanes);
        });
    });
  }

  // Zeros for a step that does not exist.
  void clear_row(int64_t row) const {
    FASTRNN_ISA::clear_row<Acc>(typed<Scalar>(p_->grad_x) + row * p_->input_size, {0, num_vectors<Acc>(p_->input_size)},
                                p_->input_size);
  }

 private:
  const LayerBackwardParams* p_ = nullptr;
  int64_t rows_ = 0, num_k_ = 0, gates_stride_ = 0;
  int64_t sums_at_ = 0, gates_at_ = 0, pointers_at_ = 0;  // of a thread's memory
  PackedMatrix<Factor> packed_;
  ThreadMemory memory_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
