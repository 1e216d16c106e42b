// Backward of one thread: all but the cell. recurrence_backward.h says what a step is.
#pragma once

#include "input_gradient.h"
#include "recurrent_gradient.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Sums over rows for grad_bias, of each atom of the batch by itself, so that they do not depend on who does which samples. Long plain
// sums lose digits: some steps of an atom, about 64 rows, are summed at a time, at least one step.
template <typename Acc>
class BiasSums {
 public:
  // Of one direction. `memory` [atoms, 2, size], nullptr: not asked for.
  BiasSums(Acc* memory, int64_t size) : memory_(memory), size_(size) {}

  bool wanted() const { return memory_ != nullptr; }
  Acc* total(int64_t atom) const { return memory_ + 2 * atom * size_; }
  // Of the last rows.
  Acc* part(int64_t atom) const { return memory_ + (2 * atom + 1) * size_; }
  // Steps of an atom whose rows are summed at a time.
  static int64_t steps(int64_t atom_rows) { return atom_rows < kRows ? kRows / atom_rows : 1; }

 private:
  static constexpr int64_t kRows = 64;
  Acc* memory_;
  int64_t size_;  // biases times their stride
};

template <typename Scalar>
class BackwardSequence : protected SequenceBase<Scalar> {
 protected:
  using Base = SequenceBase<Scalar>;
  using Base::barrier_, Base::batch_, Base::c_, Base::cell_, Base::d_, Base::exchange_rows_, Base::group_;
  using Base::h_, Base::hidden_stride_, Base::kLanes, Base::mode, Base::num_unit_groups_, Base::outputs_, Base::packed_,
      Base::projected_;
  using Base::projection_, Base::projection_exchange_, Base::projection_rows_, Base::projection_stride_, Base::s_,
      Base::scratch_, Base::share_work, Base::state_mask_;
  using Base::state_row, Base::state_stride_, Base::time, Base::unit_group_, Base::units_, Base::whom_;
  using typename Base::Acc;
  using typename Base::Factor;
  using typename Base::V;

 public:
  // Where a sample's step lies in memory, where its biases are summed, and the factor of its clip by norm.
  struct StepRow {
    const Scalar* gates;   // [kGates, H]
    Scalar* grad_gates;    // [kGates, H]
    const Scalar* grad_y;  // [P]          may be nullptr
    const Scalar* y;       // [P]
    const Scalar* h_prev;  // [P]          y of the step before, h0 at the first
    int64_t hidden;        // element of `cells`, `n_h`, `grad_n_h`
    int64_t hidden_prev;   // of the step before
    int64_t state;         // element of `grad_h`, `h_prev`
    Acc* bias;             // [biases, hidden_stride]  may be nullptr
    Acc factor;
  };

  // `input`: nullptr where the gradient of the input comes later.
  BackwardSequence(const Recurrence<Factor>& job, const BackwardParams& params, const InputGradient<Scalar>* input,
                   const Work& work, const Member& member, int thread, StepRow* rows, Record* records,
                   BiasSums<Acc> bias)
      : Base(job, work, member, thread, params.mask, params.dropout_site),
        p_(params),
        rows_(rows),
        input_(input),
        thread_(thread),
        bias_(bias),
        records_(records + group_.first),
        clip_(params),
        last_step_(work.step),
        in_gates_(Base::kStoresAcc && !cell_.has_extra) {}

  __attribute__((noinline)) void run() {
    if (last_step_ == Work::kBeginning) {
      last_step_ = group_.steps() - 1;
      load_states();
    } else if (last_step_ >= group_.steps()) {  // given by one whose first samples are longer
      last_step_ = group_.steps() - 1;
    }
    const int64_t bias_steps = BiasSums<Acc>::steps(group_.atom_rows);
    int64_t live = 0;
    for (int64_t step = last_step_; step >= 0; --step) {
      share_work(group_.count, step);
      if (live > group_.count) live = group_.count;
      while (live < group_.count && group_.lengths[live] > step) ++live;
      find_rows(live, step);
      clip(live, step);
      if (projected_) {
        for (int64_t i = 0; i < live; ++i) gather_state_gradient(i);
        barrier_.wait();
        for_each_panel(units_, kMaxVectors, [&](int64_t v, int width) {
          product(width, projection_rows_, live, projection_.panel(whom_, v), s_.state_size, {}, scratch_,
                  mode(projection_, width == kMaxVectors));
          projected_cells(live, step, v, width);
        });
      } else {
        cells(live, step);
      }
      if (p_.h_prev)
        for (int64_t i = 0; i < live; ++i) store_h_prev(i);
      if (step % bias_steps == 0) flush_bias();
      barrier_.wait();
      if (clip_.records() && !clip_.by_norm() && unit_group_ == 0)
        for (int64_t i = 0; i < live; ++i) record(i, step, norm(i, step));
      for_each_panel(outputs_, kMaxVectors, [&](int64_t v, int width) { product_of_panel(live, step, v, width); });
      if (input_) put_input_rows(live, step);
    }
    if (input_) multiply_input();
    store_states();
    clear_padding();
  }

 protected:
  // The owned units of the first `live` samples.
  virtual void cells(int64_t live, int64_t step) = 0;
  // Those of a panel, with the gradient of o tanh(c) in the scratch.
  virtual void projected_cells(int64_t live, int64_t step, int64_t v, int width) = 0;
  ~BackwardSequence() = default;

  // dh of sample `i`, units j...: what came through time, clipped, and what comes from y.
  template <typename Lanes>
  FASTRNN_INLINE V gradient_of_h(int64_t i, int64_t j, Lanes lanes) const {
    const V recurrent = load(h_ + i * state_stride_ + j, Whole{}) * V(rows_[i].factor);
    return rows_[i].grad_y ? recurrent + load(rows_[i].grad_y + j, lanes) : recurrent;
  }

  FASTRNN_INLINE void add_bias(const StepRow& row, int bias, int64_t j, V value) const {
    if (!row.bias) return;
    Acc* const sum = row.bias + bias * hidden_stride_ + j;
    store(sum, load(sum, Whole{}) + value, Whole{});
  }

  const BackwardParams& p_;
  StepRow* const rows_;  // [group's rows]  of each live sample at this step

 private:
  void find_rows(int64_t live, int64_t step) {
    const int64_t first = d_ * s_.rows;
    const auto in_y = [&](int64_t row) { return (row * s_.directions + d_) * s_.state_size; };
    for (int64_t i = 0; i < live; ++i) {
      const int64_t row = batch_.row(time(i, step), group_.samples[i]);
      const int64_t prev = step ? batch_.row(time(i, step - 1), group_.samples[i]) : 0;
      const int64_t gates = (first + row) * cell_.num_gates * s_.hidden_size;
      rows_[i] = {typed<Scalar>(p_.gates) + gates,
                  typed<Scalar>(p_.grad_gates) + gates,
                  p_.grad_y ? typed<Scalar>(p_.grad_y) + in_y(row) : nullptr,
                  typed<Scalar>(p_.y) + in_y(row),
                  step ? typed<Scalar>(p_.y) + in_y(prev) : typed<Scalar>(p_.h0) + state_row(i) * s_.state_size,
                  (first + row) * s_.hidden_size,
                  (first + prev) * s_.hidden_size,
                  (first + row) * s_.state_size,
                  bias_.wanted() ? bias_.part(group_.first_atom + i / group_.atom_rows) : nullptr,
                  Acc(1)};
      if constexpr (Base::kStoresAcc)
        if (in_gates_) exchange_rows_[0][i] = rows_[i].grad_gates;
    }
  }

  void load_states() {
    const auto row_of = [](const void* tensor, int64_t row, int64_t size) {
      return tensor ? typed<Scalar>(tensor) + row * size : nullptr;
    };
    for (int64_t i = 0; i < group_.count; ++i) {
      load_row(h_ + i * state_stride_, row_of(p_.grad_h_n, state_row(i), s_.state_size), outputs_, s_.state_size);
      if (cell_.has_cell)
        load_row(c_ + i * hidden_stride_, row_of(p_.grad_c_n, state_row(i), s_.hidden_size), units_, s_.hidden_size);
    }
    for_each_bias([&](Acc* total, Acc* part) {
      load_row<Acc, Acc>(total, nullptr, units_, s_.hidden_size);
      load_row<Acc, Acc>(part, nullptr, units_, s_.hidden_size);
    });
  }

  // Calls function(total, part) for each bias of the group's atoms.
  template <typename Function>
  void for_each_bias(Function function) const {
    if (!bias_.wanted()) return;
    for (int64_t atom = group_.first_atom; atom < group_.first_atom + group_.num_atoms(); ++atom)
      for (int k = 0; k < cell_.num_biases(); ++k)
        function(bias_.total(atom) + k * hidden_stride_, bias_.part(atom) + k * hidden_stride_);
  }

  // What a unit group finds about the group's samples at a step; two steps are kept, as in the exchange.
  Record* records(int64_t step, int unit_group) const {
    return records_ + (((step & 1) * s_.directions + d_) * num_unit_groups_ + unit_group) * batch_.num_places();
  }

  void clip(int64_t live, int64_t step) {
    if (!clip_.active()) return;
    Record* const own = records(step, unit_group_);
    for (int64_t i = 0; i < live; ++i) {
      own[i] = Record{};
      visit(clip_, h_ + i * state_stride_, outputs_, s_.state_size, own[i]);
      if (cell_.has_cell) visit(clip_, c_ + i * hidden_stride_, units_, s_.hidden_size, own[i]);
    }
    if (!clip_.by_norm()) return;
    barrier_.wait();
    for (int64_t i = 0; i < live; ++i) {
      const double size = norm(i, step);
      rows_[i].factor = static_cast<Acc>(clip_.factor(size));
      if (clip_.records()) record(i, step, size);
    }
  }

  double norm(int64_t i, int64_t step) const {
    double sum = 0;
    for (int group = 0; group < num_unit_groups_; ++group) sum += records(step, group)[i].sum_of_squares;
    return clip_.norm(sum);
  }

  // Writes what all unit groups have found of sample `i`, its norm with it; call it after a barrier.
  void record(int64_t i, int64_t step, double norm) const {
    if (unit_group_ != 0) return;
    const int64_t index = (d_ * s_.steps + time(i, step)) * s_.batch + group_.samples[i];
    if (p_.norms) typed<Acc>(p_.norms)[index] = static_cast<Acc>(norm);
    if (!p_.clipped) return;
    bool clipped = clip_.clips_norm(norm);
    for (int group = 0; group < num_unit_groups_; ++group) clipped |= records(step, group)[i].clamped;
    p_.clipped[index] = clipped;
  }

  // With a projection: the gradient of h, saved for dW_hr, on its way to the product with W_hr.
  void gather_state_gradient(int64_t i) {
    for_each_vector<Acc>(outputs_, s_.state_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
      const V grad = gradient_of_h(i, j, lanes);
      store(typed<Scalar>(p_.grad_h) + rows_[i].state + j, grad, lanes);
      store(projection_exchange_ + i * projection_stride_ + j, grad, Whole{});
      store(h_ + i * state_stride_ + j, V(0), Whole{});
    });
  }

  void store_h_prev(int64_t i) const {
    Scalar* const out = typed<Scalar>(p_.h_prev) + rows_[i].state;
    for_each_vector<Acc>(outputs_, s_.state_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
      V h = load(rows_[i].h_prev + j, lanes);
      if (state_mask_) h *= load(state_mask_ + state_row(i) * s_.state_size + j, lanes);
      store(out + j, h, lanes);
    });
  }

  // Comes at the last step, 0, in any case.
  void flush_bias() const {
    for_each_bias([&](Acc* total, Acc* part) {
      for (int64_t j = units_.begin * kLanes; j < units_.end * kLanes; j += kLanes) {
        store(total + j, load(total + j, Whole{}) + load(part + j, Whole{}), Whole{});
        store(part + j, V(0), Whole{});
      }
    });
  }

  // Adds what comes through the recurrent product to dh.
  void product_of_panel(int64_t live, int64_t step, int64_t v, int width) {
    product(width, exchange_rows_[in_gates_ ? 0 : step & 1], live, packed_.panel(whom_, v),
            cell_.num_gates * s_.hidden_size, {}, scratch_, mode(packed_, width == kMaxVectors));
    for (int64_t i = 0; i < live; ++i) {
      for_each_vector<Acc>({v, v + width}, s_.state_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        V through = load(scratch_ + (i * width - v) * kLanes + j, Whole{});
        if (state_mask_) through *= load(state_mask_ + state_row(i) * s_.state_size + j, lanes);
        Acc* const grad = h_ + i * state_stride_ + j;
        store(grad, load(grad, Whole{}) + through, Whole{});
      });
    }
  }

  // The step's rows, for the gradient of the input.
  void put_input_rows(int64_t live, int64_t step) {
    if (input_rows_ + live > input_->rows()) multiply_input();
    for (int64_t i = 0; i < live; ++i)
      input_->put_row(thread_, input_rows_++, rows_[i].grad_gates, batch_.row(time(i, step), group_.samples[i]));
  }
  void multiply_input() {
    if (input_rows_ > 0) input_->multiply(thread_, whom_, input_rows_, !this->job_.shares_work());
    input_rows_ = 0;
  }

  void store_states() const {
    for (int64_t i = 0; i < group_.count; ++i) {
      store_row(typed<Scalar>(p_.grad_h0) + state_row(i) * s_.state_size, h_ + i * state_stride_, outputs_,
                s_.state_size);
      if (cell_.has_cell)
        store_row(typed<Scalar>(p_.grad_c0) + state_row(i) * s_.hidden_size, c_ + i * hidden_stride_, units_,
                  s_.hidden_size);
    }
  }

  // Zeros for the steps that do not exist.
  void clear_padding() const {
    for (int64_t i = 0; i < group_.count; ++i) {
      for (int64_t t = group_.lengths[i]; t < s_.steps; ++t) {
        const int64_t index = (d_ * s_.steps + t) * s_.batch + group_.samples[i];
        if (unit_group_ == 0) {
          if (p_.norms) typed<Acc>(p_.norms)[index] = Acc(0);
          if (p_.clipped) p_.clipped[index] = false;
        }
        if (!batch_.padded()) continue;
        clear_outputs(d_ * s_.rows + batch_.row(t, group_.samples[i]));
        if (input_) input_->clear_row(batch_.row(t, group_.samples[i]));
      }
    }
  }
  void clear_outputs(int64_t row) const {
    const int64_t hidden = s_.hidden_size, state = s_.state_size;
    for (int gate = 0; gate < cell_.num_gates; ++gate)
      clear_row<Acc>(typed<Scalar>(p_.grad_gates) + (row * cell_.num_gates + gate) * hidden, units_, hidden);
    if (cell_.has_extra) clear_row<Acc>(typed<Scalar>(p_.grad_n_h) + row * hidden, units_, hidden);
    if (projected_) clear_row<Acc>(typed<Scalar>(p_.grad_h) + row * state, outputs_, state);
    if (p_.h_prev) clear_row<Acc>(typed<Scalar>(p_.h_prev) + row * state, outputs_, state);
  }

  const InputGradient<Scalar>* const input_;
  const int thread_;
  int64_t input_rows_ = 0;  // that wait for their product
  const BiasSums<Acc> bias_;
  Record* const records_;  // [2, D, unit groups, places], from the group's first sample on
  const RecurrentGradient clip_;
  int64_t last_step_;
  const bool in_gates_;  // grad_gates is what the product reads
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
