// Forward of one thread: all but the cell. recurrence_forward.h says what a step is.
#pragma once

#include "input_projection.h"
#include "recurrence_common.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Scalar>
class ForwardSequence : protected SequenceBase<Scalar> {
 protected:
  using Base = SequenceBase<Scalar>;
  using Base::barrier_, Base::batch_, Base::c_, Base::cell_, Base::d_, Base::exchange_, Base::exchange_rows_,
      Base::exchange_stride_, Base::group_;
  using Base::h_, Base::hidden_stride_, Base::kLanes, Base::mode, Base::outputs_, Base::packed_, Base::projected_,
      Base::projection_;
  using Base::projection_exchange_, Base::projection_rows_, Base::projection_stride_, Base::s_, Base::scratch_,
      Base::share_work, Base::state_mask_, Base::state_row;
  using Base::state_stride_, Base::time, Base::units_, Base::whom_;
  using typename Base::Acc;
  using typename Base::Element;
  using typename Base::Factor;
  using typename Base::V;

 public:
  // Where a sample's step lies in memory.
  struct StepRow {
    Scalar* gates;  // [kGates, H]  may be nullptr
    Scalar* y;      // [P]
    int64_t saved;  // element of `cells`, `n_h`, `hidden`
  };

  // `input`: the input projection, nullptr where `gates` holds it; then it comes by way of `gathered` [group's rows, panel].
  ForwardSequence(const Recurrence<Factor>& job, const ForwardParams& params, const InputProjection<Scalar>* input,
                  const Work& work, const Member& member, int thread, StepRow* rows, StepRow* next_rows, Acc* gathered)
      : Base(job, work, member, thread, params.mask, params.dropout_site),
        p_(params),
        rows_(rows),
        next_rows_(next_rows),
        carries_h_(cell_.has_extra && (!Base::kStoresAcc || state_mask_)),
        in_y_(Base::kStoresAcc && !state_mask_ && !projected_),
        c_stride_(Base::num_unit_groups_ > 1 ? kLanes : hidden_stride_),
        input_(input),
        c_vector_stride_(Base::num_unit_groups_ > 1 ? batch_.num_places() * kLanes : kLanes),
        first_c_(c_ + group_.first * (c_stride_ - hidden_stride_)),
        gathered_(gathered),
        thread_(thread),
        first_step_(work.step) {}

  __attribute__((noinline)) void run() {
    if (first_step_ == Work::kBeginning) {
      first_step_ = 0;
      load_states();
    }
    barrier_.wait();
    int64_t live = group_.count;
    while (live > 0 && group_.lengths[live - 1] <= first_step_) --live;
    int64_t round_end = first_step_;
    find_rows(next_rows_, live, first_step_);
    if (in_y_ && first_step_ > 0)
      for (int64_t i = 0; i < live; ++i) read_from_y(i, y_row(i, first_step_ - 1));
    for (int64_t step = first_step_; step < group_.steps(); ++step) {
      while (group_.lengths[live - 1] <= step) --live;
      if (step == round_end) {
        share_work(live, step);
        if (live > group_.count) live = group_.count;
        round_end += input_ ? input_->steps(group_.count) : 1;
        if (round_end > group_.steps()) round_end = group_.steps();
        if (input_) project_input(live, step, round_end);
        input_row_ = 0;
      }
      std::swap(rows_, next_rows_);
      find_rows(next_rows_, live, step + 1);
      h_next_ = exchange_[(step + 1) & 1];
      cells(live, step, exchange_rows_[in_y_ ? 0 : step & 1]);
      if (projected_) {
        barrier_.wait();
        for_each_panel(outputs_, kMaxVectors, [&](int64_t v, int width) { project_panel(live, v, width); });
      }
      input_row_ += live;
      if (in_y_)
        for (int64_t i = 0; i < live; ++i) read_from_y(i, rows_[i].y);
      barrier_.wait();
    }
    store_states();
    if (batch_.padded()) clear_padding();
  }

 protected:
  // The owned units of the first `live` samples, from the group's h_{t-1}, and units of others that are not done in time.
  virtual void cells(int64_t live, int64_t step, const Element* const* h_prev) = 0;
  ~ForwardSequence() = default;

  // h of sample `i`, outputs j...: stored in y, and where that is not what the next step reads, carried and published.
  template <typename Lanes>
  FASTRNN_INLINE void put_h(int64_t i, int64_t j, V h, Lanes lanes) {
    if (in_y_) return store(rows_[i].y + j, h, lanes);
    if (carries_h_) store(h_ + i * state_stride_ + j, h, Whole{});
    const V stored = rounded<Scalar>(h);
    store(rows_[i].y + j, stored, lanes);
    publish(i, j, stored, lanes);
  }

  const ForwardParams& p_;
  StepRow* rows_;         // [group's rows]  of each live sample, this step
  StepRow* next_rows_;    // [group's rows]  and the next
  const bool carries_h_;  // a GRU's cell reads h, which it does not find in y
  const bool in_y_;       // the product reads h_{t-1} from y
  const int64_t c_stride_;

  // c of sample `i`, units j...; the next sample's is c_stride_ behind. Where threads share units, samples follow each other: what one
  // takes of another's units is then in lines of its own.
  Acc* c_of(int64_t i, int64_t j) const { return first_c_ + j / kLanes * c_vector_stride_ + i * c_stride_; }

  // The input projection of the step for a panel of `unit_group`: [live samples, unit vector, gate, lane] (GateLayout).
  const Acc* input_of_panel(int unit_group, Range units, int64_t live, int64_t v, int width) const {
    if (!input_) return gather_input(live, v, width);
    return input_->sums(thread_ + unit_group - this->unit_group_, input_row_, units.begin, v, width);
  }

 private:
  __attribute__((noinline)) const Acc* gather_input(int64_t live, int64_t v, int width) const {
    const GateLayout layout = packed_.layout_of(v, width);
    for (int64_t i = 0; i < live; ++i) {
      Acc* out = gathered_ + i * layout.vectors * kLanes;
      for_each_vector<Acc>({v, v + width}, s_.hidden_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        for (int gate = 0; gate < cell_.num_gates; ++gate, out += layout.stride)
          store(out, load(rows_[i].gates + gate * s_.hidden_size + j, lanes), lanes);
      });
    }
    return gathered_;
  }

  // A row for each live sample; where its last step has been, that one again.
  void find_rows(StepRow* rows, int64_t live, int64_t step) const {
    for (int64_t i = 0; i < live; ++i) {
      const int64_t last = group_.lengths[i] - 1;
      const int64_t row = batch_.row(time(i, step < last ? step : last), group_.samples[i]);
      const int64_t gates = (d_ * s_.rows + row) * cell_.num_gates * s_.hidden_size;
      rows[i].gates = p_.gates ? typed<Scalar>(p_.gates) + gates : nullptr;
      rows[i].y = y_row(row);
      rows[i].saved = (d_ * s_.rows + row) * s_.hidden_size;
    }
  }

  Scalar* y_row(int64_t row) const { return typed<Scalar>(p_.y) + (row * s_.directions + d_) * s_.state_size; }
  const Scalar* y_row(int64_t i, int64_t step) const { return y_row(batch_.row(time(i, step), group_.samples[i])); }

  // The next product's row `i`.
  void read_from_y([[maybe_unused]] int64_t i, [[maybe_unused]] const Scalar* y) const {
    if constexpr (Base::kStoresAcc) exchange_rows_[0][i] = y;
  }

  // For the steps from `step`, which has `live` samples, to `end`.
  void project_input(int64_t live, int64_t step, int64_t end) const {
    int64_t num_rows = 0;
    for (; step < end; ++step) {
      while (group_.lengths[live - 1] <= step) --live;
      for (int64_t i = 0; i < live; ++i)
        input_->put_row(thread_, num_rows++, batch_.row(time(i, step), group_.samples[i]));
    }
    input_->multiply(thread_, whom_, units_, num_rows, {input_->packed().outgrows_cache(), !this->job_.shares_work()});
  }

  void load_states() {
    h_next_ = exchange_[0];
    for (int64_t i = 0; i < group_.count; ++i) {
      Acc* const h = h_ + i * state_stride_;
      load_row(h, initial(p_.h0, i, s_.state_size), outputs_, s_.state_size);
      for_each_vector<Acc>(outputs_, s_.state_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        publish(i, j, load(h + j, Whole{}), lanes);
      });
      if (!cell_.has_cell) continue;
      const Scalar* const c0 = initial(p_.c0, i, s_.hidden_size);
      for_each_vector<Acc>(units_, s_.hidden_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        store(c_of(i, j), c0 ? load(c0 + j, lanes) : V(0), Whole{});
      });
    }
  }

  // Sample i's row of h0 or c0; nullptr: zeros.
  const Scalar* initial(const void* states, int64_t i, int64_t size) const {
    return states ? typed<Scalar>(states) + state_row(i) * size : nullptr;
  }

  // Into the exchange goes h as the product sees it: rounded to storage, masked, rounded again.
  template <typename Lanes>
  FASTRNN_INLINE void publish(int64_t i, int64_t j, V h, Lanes lanes) {
    if (state_mask_) h = rounded<Scalar>(h * load(state_mask_ + state_row(i) * s_.state_size + j, lanes));
    store(h_next_ + i * exchange_stride_ + j, h, Whole{});
  }

  void project_panel(int64_t live, int64_t v, int width) {
    product(width, projection_rows_, live, projection_.panel(whom_, v), s_.hidden_size, {}, scratch_,
            mode(projection_, width == kMaxVectors));
    for (int64_t i = 0; i < live; ++i) {
      for_each_vector<Acc>({v, v + width}, s_.state_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        put_h(i, j, load(scratch_ + (i * width - v) * kLanes + j, Whole{}), lanes);
      });
    }
  }

  void store_states() const {
    for (int64_t i = 0; i < group_.count; ++i) {
      Scalar* const h_n = typed<Scalar>(p_.h_n) + state_row(i) * s_.state_size;
      if (!carries_h_ && group_.lengths[i] > 0)
        copy_row<Acc>(h_n, y_row(i, group_.lengths[i] - 1), outputs_, s_.state_size);
      else
        store_row(h_n, h_ + i * state_stride_, outputs_, s_.state_size);
      if (!cell_.has_cell) continue;
      Scalar* const c_n = typed<Scalar>(p_.c_n) + state_row(i) * s_.hidden_size;
      for_each_vector<Acc>(units_, s_.hidden_size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        store(c_n + j, load(c_of(i, j), Whole{}), lanes);
      });
    }
  }

  // Zeros for the steps that do not exist; `hidden` too, since dW_hr multiplies it with grad_h's zeros there.
  void clear_padding() const {
    for (int64_t i = 0; i < group_.count; ++i) {
      for (int64_t t = group_.lengths[i]; t < s_.steps; ++t) {
        const int64_t row = batch_.row(t, group_.samples[i]);
        clear_row<Acc>(y_row(row), outputs_, s_.state_size);
        if (projected_ && p_.save)
          clear_row<Acc>(typed<Scalar>(p_.hidden) + (d_ * s_.rows + row) * s_.hidden_size, units_, s_.hidden_size);
      }
    }
  }

  const InputProjection<Scalar>* const input_;
  const int64_t c_vector_stride_;
  Acc* const first_c_;
  Acc* const gathered_;
  const int thread_;
  int64_t first_step_;
  int64_t input_row_ = 0;  // of the step in its round
  Element* h_next_ = nullptr;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
