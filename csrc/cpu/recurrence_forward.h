// Forward: a whole sequence in one parallel region.
//
// A thread owns some samples (its row group) and some hidden units with all their gates (its unit group; split.h). It packs
// its rows of W_hh once, and of W_ih where the input projection is done here (input_projection.h), some steps ahead. A step is
//   1. the product of the group's h_{t-1} with the owned panels, a few unit vectors at a time, into a scratch that stays in
//      the first-level cache; an LSTM's and an RNN's is added to the input projection,
//   2. the cell on that scratch: gates, c and h of the owned units; h_t goes to y, and rounded and masked into the exchange,
//   3. the group's barrier, where there are several unit groups.
// The exchange holds two steps, so that one barrier is enough: who writes h_t cannot overtake who still reads h_{t-1}. Where y holds
// what the product reads, there is no exchange but for h_0: each h is written once.
// An LSTM with a projection has a second product and barrier in each step: o tanh(c) goes through an exchange of its own.
#pragma once

#include "forward_sequence.h"
#include "several.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Scalar, typename Cell>
class ForwardCells final : public ForwardSequence<Scalar> {
  using Base = ForwardSequence<Scalar>;
  using Base::d_, Base::exchange_stride_, Base::h_, Base::kLanes, Base::next_rows_, Base::p_;
  using Base::packed_, Base::projected_, Base::projection_exchange_, Base::projection_stride_, Base::rows_, Base::s_,
      Base::scratch_;
  using Base::state_stride_, Base::units_;
  using typename Base::Acc;
  using typename Base::Element;
  using typename Base::V;
  static constexpr int kGates = Cell::kGates;
  // Samples whose cells are computed side by side, to the same bits as one by one. Nothing was gained from it with AVX-512.
  static constexpr int kSamples = kVectorBytes == 64 ? 1 : 2;
  // A GRU's reset is between the two.
  static constexpr bool kAddsToInput = !Cell::kHasExtra;
  // Below, a panel is done in the time that it takes to claim it.
  static constexpr int64_t kFewestToClaim = 4;

 public:
  using typename Base::StepRow;
  // Unit vectors of a panel.
  static constexpr int kWidth = kMaxVectors / kGates;
  static_assert(kGates == 1 || kWidth == 1, "GateLayout's");

  using Base::Base;

 private:
  void cells(int64_t live, int64_t step, const Element* const* h_prev) override {
    const int own = this->unit_group_, num_groups = this->num_unit_groups_;
    if (num_groups > 1) fetch_rows(live, h_prev);
    PanelClaims* const claims = live >= kFewestToClaim ? this->claims(own) : nullptr;
    if (!claims) {
      for_each_panel(units_, kWidth,
                     [&](int64_t v, int width) { cells_of_panel(own, units_, live, h_prev, v, width); });
      return;
    }
    const auto do_panel = [&](int unit_group, Range units, int64_t index) {
      const int64_t v = units.begin + index * kWidth, left = units.end - v;
      cells_of_panel(unit_group, units, live, h_prev, v, left < kWidth ? static_cast<int>(left) : kWidth);
    };
    const auto num_panels = [](Range units) { return (units.end - units.begin + kWidth - 1) / kWidth; };
    claims->open(step);
    for (int64_t index; (index = claims->take_first(step, num_panels(units_))) >= 0;) do_panel(own, units_, index);
    for (int i = 1; i < num_groups; ++i) {
      const int other = (own + i) % num_groups;
      const Range units = this->units_of(other);
      PanelClaims* const others = this->claims(other);
      for (int64_t index; (index = others->take_last(step, num_panels(units))) >= 0;) do_panel(other, units, index);
    }
  }

  // What other threads have written of these rows is in their caches, and comes all at once before the product asks for it bit by bit.
  void fetch_rows(int64_t live, const Element* const* rows) const {
    constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(Element));
    for (int group = 0; group < this->num_unit_groups_; ++group) {
      if (group == this->unit_group_) continue;
      const Range units = this->units_of(group);
      for (int64_t i = 0; i < live; ++i)
        for (int64_t j = units.begin * kLanes; j < units.end * kLanes; j += kLine) __builtin_prefetch(rows[i] + j);
    }
  }

  // The panel of unit vectors [v, v + width), which belongs to `unit_group`.
  void cells_of_panel(int unit_group, Range units, int64_t live, const Element* const* h_prev, int64_t v, int width) {
    const GateLayout layout = packed_.layout_of(v, width);
    const int64_t stride = layout.vectors * kLanes;
    const Acc* const input = this->input_of_panel(unit_group, units, live, v, width);
    product(layout.vectors, h_prev, live, packed_.panel(this->whom_, v), s_.state_size,
            kAddsToInput ? Start<Acc>{input, stride} : Start<Acc>{}, scratch_,
            this->mode(packed_, layout.vectors == kWidth * kGates));
    const bool last = v + width >= units.end;
    const StepRow* const rows_ahead = last ? next_rows_ : rows_;
    const int64_t ahead = (last ? units_.begin : v + width) * kLanes;
    for (int64_t i = 0; i < live; ++i) prefetch(rows_ahead[i], ahead);
    for (int u = 0; u < width; ++u) {
      with_lanes<Acc>(v + u, s_.hidden_size, [&](auto lanes) __attribute__((always_inline)) {
        const int64_t j = (v + u) * kLanes, at = u * kGates * kLanes;
        // Only a vector that is not whole may share.
        const int64_t gate_stride = std::is_same_v<decltype(lanes), Whole> ? kLanes : layout.stride;
        const Sums products{scratch_ + at, stride, gate_stride};
        if constexpr (Cell::kHasCell) {
          cells_in_two_passes(live, j, products, lanes);
        } else {
          const Inputs inputs{input + at, stride, gate_stride};
          for_each_sample(live, [&](int64_t i, auto count) __attribute__((always_inline)) {
            cell<count>(i, j, inputs.from(i), products.from(i), lanes);
          });
        }
      });
    }
  }

  // Calls function(i, count) for the first `live` samples, kSamples or one at a time.
  template <typename Function>
  FASTRNN_INLINE static void for_each_sample(int64_t live, Function function) {
    int64_t i = 0;
    for (; i + kSamples <= live; i += kSamples) function(i, std::integral_constant<int, kSamples>{});
    for (; i < live; ++i) function(i, std::integral_constant<int, 1>{});
  }

  // What the next panel's cells touch is a cache line here and there, which no hardware foresees; the product in between
  // hides their way.
  FASTRNN_INLINE void prefetch(const StepRow& row, int64_t j) const {
    if (row.gates)
      for (int gate = 0; gate < kGates; ++gate) __builtin_prefetch(row.gates + gate * s_.hidden_size + j, 1);
    __builtin_prefetch(row.y + j, 1);
    if (Cell::kHasCell && p_.save) __builtin_prefetch(typed<Acc>(p_.cells) + row.saved + j, 1);
  }

  // A vector of each sample, for each gate if there are any.
  template <typename T>
  struct Vectors {
    T* first;
    int64_t stride, gate_stride;

    FASTRNN_INLINE T* of(int64_t i, int gate = 0) const { return first + i * stride + gate * gate_stride; }
    FASTRNN_INLINE Vectors from(int64_t i) const { return {of(i), stride, gate_stride}; }
  };
  using Inputs = Vectors<const Acc>;
  using Sums = Vectors<Acc>;

  // The cells of kCount samples from `i` on, units j..., of an RNN or a GRU; `input`: the input projection, `products`: the recurrent
  // product.
  template <int kCount, typename Lanes>
  FASTRNN_INLINE void cell(int64_t i, int64_t j, Inputs input, Sums products, Lanes lanes) {
    using Vs = Several<V, kCount>;
    std::conditional_t<kAddsToInput, AddedToR, Vs> x[kGates];
    Vs r[kGates], gates[kGates], extra(0), keep;
    State<Vs> prev{Vs(0), Vs(0)};
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      for (int gate = 0; gate < kGates; ++gate) {
        if constexpr (!kAddsToInput) x[gate].each[n] = load(input.of(n, gate), Whole{});
        r[gate].each[n] = load(products.of(n, gate), Whole{});
      }
      if constexpr (Cell::kHasExtra) {
        if (p_.b_hn[d_]) r[kGates - 1].each[n] += load(typed<Scalar>(p_.b_hn[d_]) + j, lanes);
        prev.h.each[n] = this->in_y_ ? load(this->exchange_rows_[0][i + n] + j, lanes)
                                     : load(h_ + (i + n) * state_stride_ + j, Whole{});
      }
      keep.each[n] = this->keep(i + n, j, lanes);
    }

    const State<Vs> next = Cell::forward(x, r, prev, keep, gates, extra);

#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      V gates_n[kGates];
      for (int gate = 0; gate < kGates; ++gate) gates_n[gate] = gates[gate].each[n];
      if (p_.save) save(i + n, j, V(0), gates_n, extra.each[n], lanes);
      put_output(i + n, j, next.h.each[n], lanes);
    }
  }

  // An LSTM's c of all samples, then their h: half the chain of operations that one cell waits for.
  template <typename Lanes>
  FASTRNN_INLINE void cells_in_two_passes(int64_t live, int64_t j, Sums products, Lanes lanes) {
    const Sums c{this->c_of(0, j), this->c_stride_, /*gate_stride=*/0};
    const bool saves = p_.save;
    for_each_sample(live, [&](int64_t i, auto count) __attribute__((always_inline)) {
      next_c<count>(i, j, products.from(i), c.from(i), saves, lanes);
    });
    for_each_sample(live, [&](int64_t i, auto count) __attribute__((always_inline)) {
      next_h<count>(i, j, products.from(i), c.from(i), lanes);
    });
  }

  // c and the gates; the output gate takes its product's place.
  template <int kCount, typename Lanes>
  FASTRNN_INLINE void next_c(int64_t i, int64_t j, Sums products, Sums c, bool saves, Lanes lanes) {
    using Vs = Several<V, kCount>;
    const AddedToR x[kGates] = {};
    Vs r[kGates], gates[kGates], keep, next;
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      for (int gate = 0; gate < kGates; ++gate) r[gate].each[n] = load(products.of(n, gate), Whole{});
      next.each[n] = load(c.of(n), Whole{});
      keep.each[n] = this->keep(i + n, j, lanes);
    }
    next = Cell::next_c(x, r, next, keep, gates);
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      V gates_n[kGates];
      for (int gate = 0; gate < kGates; ++gate) gates_n[gate] = gates[gate].each[n];
      store(products.of(n, kGates - 1), gates_n[kGates - 1], lanes);
      store(c.of(n), next.each[n], Whole{});
      if (saves) save(i + n, j, next.each[n], gates_n, V(0), lanes);
    }
  }

  template <int kCount, typename Lanes>
  FASTRNN_INLINE void next_h(int64_t i, int64_t j, Sums products, Sums c, Lanes lanes) {
    Several<V, kCount> output_gate, next;
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      output_gate.each[n] = load(products.of(n, kGates - 1), Whole{});
      next.each[n] = load(c.of(n), Whole{});
    }
    next = Cell::next_h(output_gate, next);
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) put_output(i + n, j, next.each[n], lanes);
  }

  // For backward, what the cell of sample `i` has found beside h, units j...
  template <typename Lanes>
  FASTRNN_INLINE void save(int64_t i, int64_t j, V c, const V (&gates)[kGates], V extra, Lanes lanes) {
    const StepRow row = rows_[i];
    if constexpr (kGates > 1)
      for (int gate = 0; gate < kGates; ++gate) store(row.gates + gate * s_.hidden_size + j, gates[gate], lanes);
    if constexpr (Cell::kHasCell) store(typed<Acc>(p_.cells) + row.saved + j, c, lanes);
    if constexpr (Cell::kHasExtra) store(typed<Scalar>(p_.n_h) + row.saved + j, extra, lanes);
  }

  // And h before a projection.
  template <typename Lanes>
  FASTRNN_INLINE void put_output(int64_t i, int64_t j, V h, Lanes lanes) {
    if constexpr (Cell::kHasCell) {
      if (projected_) {
        const V hidden = rounded<Scalar>(h);
        store(projection_exchange_ + i * projection_stride_ + j, hidden, Whole{});
        if (p_.save) store(typed<Scalar>(p_.hidden) + rows_[i].saved + j, hidden, lanes);
        return;
      }
    }
    this->put_h(i, j, h, lanes);
  }
};

template <typename Scalar, typename Cell>
class Forward final : public Recurrence<typename FactorOf<Scalar>::type> {
  using Acc = typename AccOf<Scalar>::type;
  using Sequence = ForwardCells<Scalar, Cell>;
  using StepRow = typename Sequence::StepRow;

 public:
  Forward(const LayerForwardParams& params, int64_t l2_bytes)
      : Recurrence<typename FactorOf<Scalar>::type>(params.shape, traits_of<Cell>(), params.w_hr[0] != nullptr,
                                                    l2_bytes),
        p_(params) {}

 private:
  void prepare(int num_threads) override {
    const Shape& s = p_.shape;
    this->share(num_threads, Sequence::kWidth * Cell::kGates, true, p_.lengths, p_.offsets, s.hidden_size, Cell::kGates,
                s.state_size);
    if (this->projected_) this->share_projection(s.state_size, s.hidden_size);
    rows_stride_ = this->group_rows_ + kApartBytes / sizeof(StepRow) + 1;
    rows_.allocate(2 * num_threads * rows_stride_ * sizeof(StepRow));
    if (!p_.x) {
      gathered_.allocate(num_threads * this->scratch_stride_ * sizeof(Acc));
      return;
    }
    const int unit_groups = this->split_.unit_groups;
    const int64_t unit_lines = (lines_of(num_vectors<Acc>(s.hidden_size)) + unit_groups - 1) / unit_groups;
    input_.allocate(p_, this->cell_, this->group_rows_, unit_lines * kVectorsPerLine, num_threads,
                    this->l2_bytes_ * unit_groups, this->copies_);
  }

  void pack(int64_t d, const Member& member) override {
    const PackedFor whom{d, member.row_group};
    const Range units = this->owned(p_.shape.hidden_size, member);
    this->for_each_panel_to_pack(this->packed_, units, Sequence::kWidth, member, [&](int64_t v, int width) {
      this->packed_.pack_rows(typed<Scalar>(p_.w_hh[d]), whom, v, width);
    });
    if (p_.x)
      this->for_each_panel_to_pack(input_.packed(), units, Sequence::kWidth, member,
                                   [&](int64_t v, int width) { input_.pack(whom, v, width); });
    if (!this->projected_) return;
    this->for_each_panel_to_pack(
        this->projection_, this->owned(p_.shape.state_size, member), kMaxVectors, member,
        [&](int64_t v, int width) { this->projection_.pack_rows(typed<Scalar>(p_.w_hr[d]), whom, v, width); });
  }

  void run(const Work& work, const Member& member, int thread) override {
    StepRow* const rows = rows_.as<StepRow>() + 2 * thread * rows_stride_;
    Sequence(*this, p_, p_.x ? &input_ : nullptr, work, member, thread, rows, rows + rows_stride_,
             p_.x ? nullptr : gathered_.as<Acc>() + thread * this->scratch_stride_)
        .run();
  }

  void finish(int64_t, const Member&) override {}

  const LayerForwardParams& p_;
  int64_t rows_stride_ = 0;
  Buffer rows_, gathered_;
  InputProjection<Scalar> input_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
