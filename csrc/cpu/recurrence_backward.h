// Backward: a whole sequence in one parallel region, last step first.
//
// Threads own samples and units as in forward. Carried from step to step is the recurrent gradient r_t = (dh, dc) of the
// owned units. A step is
//   1. where asked for, the norm of r_t, recorded, and the clip (recurrent_gradient.h); the norm clip costs a barrier, since
//      a norm needs all units of a sample,
//   2. the cell's derivative for the owned units: gate gradients go out, and into the exchange; bias sums are kept,
//   3. the group's barrier,
//   4. dh of the owned units for the step before: the product of the group's gate gradients with the owned panels of W_hh,
//      packed by columns. Where it multiplies pairs of bfloat16 (factors.h), the gate gradients are rounded for it.
// Where a thread does all units of its samples, the gradient of the input is multiplied here, too, some steps at a time
// (input_gradient.h).
// The exchange holds two steps, so that one barrier is enough; where grad_gates holds what the product reads, it is not used. With
// a projection, the gradient of h goes through an exchange of its own and a product with W_hr before the cell.
#pragma once

#include "backward_sequence.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Scalar, typename Cell>
class BackwardCells final : public BackwardSequence<Scalar> {
  using Base = BackwardSequence<Scalar>;
  using Base::add_bias, Base::c_, Base::exchange_, Base::exchange_stride_, Base::h_, Base::hidden_stride_, Base::kLanes,
      Base::p_;
  using Base::rows_, Base::s_, Base::scratch_, Base::state_row, Base::state_stride_, Base::units_;
  using typename Base::Acc;
  using typename Base::Element;
  using typename Base::V;
  static constexpr int kGates = Cell::kGates;

 public:
  using Base::Base;
  using typename Base::StepRow;

 private:
  void cells(int64_t live, int64_t step) override {
    for (int64_t i = 0; i < live; ++i) {
      const StepRow ahead = rows_[i + 1 < live ? i + 1 : i];
      for_each_vector<Acc>(units_, s_.hidden_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        prefetch(ahead, j);
        const V direct = cell(i, j, step, this->gradient_of_h(i, j, lanes), lanes);
        store(h_ + i * state_stride_ + j, direct, Whole{});
      });
    }
  }

  void projected_cells(int64_t live, int64_t step, int64_t v, int width) override {
    // No other cell has a projection.
    if constexpr (Cell::kHasCell) {
      for (int64_t i = 0; i < live; ++i) {
        for_each_vector<Acc>({v, v + width}, s_.hidden_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
          cell(i, j, step, load(scratch_ + (i * width - v) * kLanes + j, Whole{}), lanes);
        });
      }
    }
  }

  // The hardware follows a row, but not from one to the next.
  FASTRNN_INLINE void prefetch(const StepRow& row, int64_t j) const {
    if (j % (kLineBytes / static_cast<int64_t>(sizeof(Scalar))) != 0) return;
    for (int gate = 0; gate < kGates; ++gate) {
      if (kGates > 1) __builtin_prefetch(row.gates + gate * s_.hidden_size + j);
      __builtin_prefetch(row.grad_gates + gate * s_.hidden_size + j, 1);
    }
    __builtin_prefetch(row.grad_y + j);
    if (Cell::kHasCell) __builtin_prefetch(typed<Acc>(p_.cells) + row.hidden + j);
  }

  // The cell of sample `i`, units j...; returns the gradient of h_{t-1} that does not go through the product.
  template <typename Lanes>
  FASTRNN_INLINE V cell(int64_t i, int64_t j, int64_t step, V grad_h, Lanes lanes) const {
    const StepRow row = rows_[i];
    V gates[kGates], extra(0), grad_x[kGates], grad_r[kGates];
    for (int gate = 0; gate < kGates; ++gate)
      gates[gate] = kGates > 1 ? load(row.gates + gate * s_.hidden_size + j, lanes) : V(0);
    State<V> grad{grad_h, V(0)}, prev{V(0), V(0)}, next{V(0), V(0)};
    if constexpr (Cell::kHasCell) {
      grad.c = load(c_ + i * hidden_stride_ + j, Whole{}) * V(row.factor);
      next.c = load(typed<Acc>(p_.cells) + row.hidden + j, lanes);
      prev.c = step ? load(typed<Acc>(p_.cells) + row.hidden_prev + j, lanes)
                    : load(typed<Scalar>(p_.c0) + state_row(i) * s_.hidden_size + j, lanes);
    } else if constexpr (Cell::kHasExtra) {
      extra = load(typed<Scalar>(p_.n_h) + row.hidden + j, lanes);
      prev.h = load(row.h_prev + j, lanes);
    } else {
      next.h = load(row.y + j, lanes);
    }

    const State<V> direct = Cell::backward(grad, gates, extra, prev, next, this->keep(i, j, lanes), grad_x, grad_r);

    if constexpr (Cell::kHasCell) store(c_ + i * hidden_stride_ + j, direct.c, Whole{});
    [[maybe_unused]] Element* const to_product = exchange_[step & 1] + i * exchange_stride_ + j;
    for (int gate = 0; gate < kGates; ++gate) {
      store(row.grad_gates + gate * s_.hidden_size + j, grad_x[gate], lanes);
      if constexpr (!Base::kStoresAcc || Cell::kHasExtra)
        store(to_product + gate * s_.hidden_size, grad_r[gate], lanes);
      add_bias(row, gate, j, grad_x[gate]);
    }
    if constexpr (Cell::kHasExtra) {
      store(typed<Scalar>(p_.grad_n_h) + row.hidden + j, grad_r[kGates - 1], lanes);
      add_bias(row, kGates, j, grad_r[kGates - 1]);
    }
    return direct.h;
  }
};

template <typename Scalar, typename Cell>
class Backward final : public Recurrence<typename FactorOf<Scalar>::type> {
  using Acc = typename AccOf<Scalar>::type;
  using Sequence = BackwardCells<Scalar, Cell>;
  using StepRow = typename Sequence::StepRow;

 public:
  Backward(const LayerBackwardParams& params, int64_t l2_bytes)
      : Recurrence<typename FactorOf<Scalar>::type>(params.shape, traits_of<Cell>(), params.w_hr[0] != nullptr,
                                                    l2_bytes),
        p_(params) {}

 private:
  void prepare(int num_threads) override {
    const Shape& s = p_.shape;
    this->share(num_threads, kMaxVectors, false, p_.lengths, p_.offsets, s.state_size, 1, Cell::kGates * s.hidden_size);
    if (this->projected_) this->share_projection(s.hidden_size, s.state_size);
    rows_stride_ = this->group_rows_ + kApartBytes / sizeof(StepRow) + 1;
    rows_.allocate(num_threads * rows_stride_ * sizeof(StepRow));
    records_.allocate(2 * this->places() * this->split_.unit_groups * sizeof(Record));
    bias_size_ = this->cell_.num_biases() * this->hidden_stride_;
    if (p_.grad_bias) bias_.allocate(2 * s.directions * this->batch_->num_atoms() * bias_size_ * sizeof(Acc));
    if (p_.grad_x) input_.allocate(p_, Cell::kGates, this->group_rows_, num_threads, this->l2_bytes_, this->copies_);
  }

  void pack(int64_t d, const Member& member) override {
    const PackedFor whom{d, member.row_group};
    this->for_each_panel_to_pack(
        this->packed_, this->owned(p_.shape.state_size, member), kMaxVectors, member,
        [&](int64_t v, int width) { this->packed_.pack_columns(typed<Scalar>(p_.w_hh[d]), whom, v, width); });
    if (multiplies_input(member))
      this->for_each_panel_to_pack(input_.packed(), {0, num_vectors<Acc>(p_.input_size)}, kMaxVectors, member,
                                   [&](int64_t v, int width) { input_.pack(whom, v, width); });
    if (!this->projected_) return;
    this->for_each_panel_to_pack(
        this->projection_, this->owned(p_.shape.hidden_size, member), kMaxVectors, member,
        [&](int64_t v, int width) { this->projection_.pack_columns(typed<Scalar>(p_.w_hr[d]), whom, v, width); });
  }

  // Threads that share units, which come here if the team is smaller than asked for, leave it to one of them.
  bool multiplies_input(const Member& member) const { return p_.grad_x && member.unit_group == 0; }

  BiasSums<Acc> bias(int64_t d) const {
    return {p_.grad_bias ? bias_.as<Acc>() + 2 * d * this->batch_->num_atoms() * bias_size_ : nullptr, bias_size_};
  }

  void run(const Work& work, const Member& member, int thread) override {
    const InputGradient<Scalar>* const input = multiplies_input(member) ? &input_ : nullptr;
    Sequence(*this, p_, input, work, member, thread, rows_.as<StepRow>() + thread * rows_stride_, records_.as<Record>(),
             bias(work.direction))
        .run();
  }

  // Adds up the atoms' bias sums, in their order.
  void finish(int64_t d, const Member& member) override {
    if (!p_.grad_bias || member.row_group != 0) return;
    const int64_t hidden = p_.shape.hidden_size;
    for (int k = 0; k < this->cell_.num_biases(); ++k) {
      Acc* const out = typed<Acc>(p_.grad_bias) + (d * this->cell_.num_biases() + k) * hidden;
      for_each_vector<Acc>(this->owned(hidden, member), hidden,
                           [&](int64_t j, auto lanes) __attribute__((always_inline)) {
                             const int64_t at = k * this->hidden_stride_ + j;
                             Vec<Acc> sum(0);
                             for (int64_t atom = 0; atom < this->batch_->num_atoms(); ++atom)
                               sum += load(bias(d).total(atom) + at, Whole{});
                             store(out + j, sum, lanes);
                           });
    }
  }

  const LayerBackwardParams& p_;
  int64_t rows_stride_ = 0, bias_size_ = 0;
  Buffer rows_, records_, bias_;
  InputGradient<Scalar> input_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
