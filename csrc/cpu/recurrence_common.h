// What forward and backward share: who owns which rows and units, the scratch memory, and the order of a call.
#pragma once

#include "batch.h"
#include "buffer.h"
#include "panels.h"
#include "product.h"
#include "simd_math.h"
#include "split.h"
#include "team.h"

#include "../cells.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// A cache line: the grain of what threads own, so that they write to the same one only where one takes a panel from another.
constexpr int64_t kLineBytes = 64;
constexpr int64_t kVectorsPerLine = kLineBytes / kVectorBytes;

constexpr int64_t lines_of(int64_t vectors) { return (vectors + kVectorsPerLine - 1) / kVectorsPerLine; }

constexpr int64_t whole_lines(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

// Rows of a round, some steps of a thread's samples that are multiplied with W_ih together: as many as it takes for reading W_ih to be
// hidden behind the multiplications, twice as many from beyond the second-level cache; more would push the weights of the recurrence
// out of it.
constexpr int64_t rows_of_round(bool outgrows_cache) { return outgrows_cache ? 128 : 64; }

// Row stride of a scratch array of `elements` columns: whole cache lines, and one more so that the rows of a power of two
// do not fall on the same sets of the cache.
template <typename T>
int64_t padded_stride(int64_t elements) {
  constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(T));
  return ((elements + kLine - 1) / kLine + 1) * kLine;
}

// Calls function(first vector, width) for the panels that a range of vectors is cut into.
template <typename Function>
FASTRNN_INLINE void for_each_panel(Range vectors, int max_width, Function function) {
  for (int64_t v = vectors.begin; v < vectors.end; v += max_width) {
    const int64_t left = vectors.end - v;
    function(v, static_cast<int>(left < max_width ? left : max_width));
  }
}

// Calls function(first element, lanes) for the vectors of a range, the last of `elements` perhaps a part.
template <typename T, typename Function>
FASTRNN_INLINE void for_each_vector(Range vectors, int64_t elements, Function function) {
  for (int64_t v = vectors.begin; v < vectors.end; ++v)
    with_lanes<T>(v, elements, [&](auto lanes) __attribute__((always_inline)) { function(v * Vec<T>::kLanes, lanes); });
}

// Owned vectors of a row: into scratch (zeros from nullptr), out of it, a copy, and zeros.
template <typename Scalar, typename T>
__attribute__((noinline)) void load_row(T* to, const Scalar* from, Range vectors, int64_t elements) {
  for_each_vector<T>(vectors, elements, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    store(to + j, from ? load(from + j, lanes) : Vec<T>(0), Whole{});
  });
}
template <typename Scalar, typename T>
__attribute__((noinline)) void store_row(Scalar* to, const T* from, Range vectors, int64_t elements) {
  for_each_vector<T>(vectors, elements, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    store(to + j, load(from + j, Whole{}), lanes);
  });
}
template <typename T, typename Scalar>
__attribute__((noinline)) void copy_row(Scalar* to, const Scalar* from, Range vectors, int64_t elements) {
  for_each_vector<T>(vectors, elements, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    store(to + j, load(from + j, lanes), lanes);
  });
}
template <typename T, typename Scalar>
__attribute__((noinline)) void clear_row(Scalar* row, Range vectors, int64_t elements) {
  for_each_vector<T>(vectors, elements,
                     [&](int64_t j, auto lanes) __attribute__((always_inline)) { store(row + j, Vec<T>(0), lanes); });
}

// A row as a product reads it, from where it is stored.
template <typename Factor, typename Scalar>
__attribute__((noinline)) void load_elements(const Scalar* from, int64_t count, ElementOf<Factor>* to) {
  using Acc = typename AccOf<Scalar>::type;
  for_each_vector<Acc>({0, num_vectors<Acc>(count)}, count, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
    store(to + k, load(from + k, lanes), Whole{});
  });
}

template <typename T>
T* typed(void* data) {
  return static_cast<T*>(data);
}
template <typename T>
const T* typed(const void* data) {
  return static_cast<const T*>(data);
}

// Whether tensors hold numbers as they are computed, and as products read them.
template <typename Scalar>
constexpr bool stores_acc() {
  return std::is_same_v<Scalar, typename AccOf<Scalar>::type> &&
         std::is_same_v<Scalar, ElementOf<typename FactorOf<Scalar>::type>>;
}

// What the engine must know of a cell besides its maths.
struct CellTraits {
  int num_gates;
  bool has_cell;
  bool has_extra;
  // Columns of grad_bias per unit: GRU's n_h has one of its own.
  int num_biases() const { return num_gates + (has_extra ? 1 : 0); }
};
template <typename Cell>
constexpr CellTraits traits_of() {
  return {Cell::kGates, Cell::kHasCell, Cell::kHasExtra};
}

// Memory of each thread of a call, apart from that of others.
class ThreadMemory {
 public:
  void allocate(int num_threads, int64_t bytes) {
    stride_ = whole_lines(bytes) + kApartBytes;
    memory_.allocate(num_threads * stride_);
  }
  template <typename T>
  T* at(int thread, int64_t offset) const {
    return reinterpret_cast<T*>(memory_.as<char>() + thread * stride_ + offset);
  }

 private:
  int64_t stride_ = 0;
  Buffer memory_;
};

// How threads share the recurrent product: `num_outputs` outputs of `num_gates` vectors each, from `num_k` numbers.
template <typename Factor>
Split split_of_step(const Shape& shape, int64_t num_outputs, int num_gates, int64_t num_k, int64_t l2_bytes,
                    int num_threads, bool claims_panels) {
  return choose_split(
      {shape.directions, shape.steps, shape.batch, lines_of(num_vectors<typename AccOf<Factor>::type>(num_outputs)),
       num_gates * kVectorsPerLine, num_factors<Factor>(num_k), kVectorBytes, l2_bytes, claims_panels},
      num_threads);
}
template <typename Factor>
Split split_of_forward(const Shape& s, int num_threads, int64_t l2_bytes) {
  return split_of_step<Factor>(s, s.hidden_size, num_gates(s.cell), s.state_size, l2_bytes, num_threads, true);
}
template <typename Factor>
Split split_of_backward(const Shape& s, int num_threads, int64_t l2_bytes) {
  return split_of_step<Factor>(s, s.state_size, 1, num_gates(s.cell) * s.hidden_size, l2_bytes, num_threads, false);
}

// A call: packs the weights and runs each direction; threads that wait for nobody at a step take work from each other in the end
// (work_queue.h). Scratch memory is laid out by the samples' places in the batch's order, so that a row group's rows are neighbours.
template <typename Factor>
class Recurrence : public TeamJob {
  using Acc = typename AccOf<Factor>::type;
  using Element = ElementOf<Factor>;
  // For so many rows of a thread packing is cheap: then each row group packs all that it reads. Half of it would come from the caches of
  // others, perhaps of another die, from where a line takes longer than to pack it.
  static constexpr int64_t kRowsPerCopy = 256;
  static constexpr int kExchanges = 3;  // of even steps, of odd ones, that of a projection

 public:
  void work(int thread) final {
    const Member member = member_of(split_, thread);
    if (!member.active) return;
    const int64_t first = split_.direction_teams == 2 ? member.direction_team : 0;
    const int64_t last = split_.direction_teams == 2 ? first + 1 : shape_.directions;
    for (int64_t d = first; d < last; ++d) pack(d, member);
    team_barriers_[member.direction_team].wait();
    Work work{};
    for (int64_t d = first; d < last; ++d) {
      work = {d, batch_->group(member.row_group), Work::kBeginning};
      run(work, member, thread);
      work_queue_.done();
    }
    if (shares_work_) {
      while (work_queue_.take(work)) {
        run(work, member, thread);
        work_queue_.done();
      }
    } else {
      team_barriers_[member.direction_team].wait();
    }
    for (int64_t d = first; d < last; ++d) finish(d, member);
  }

  // Whether who does a sample's steps may change in the middle.
  bool shares_work() const { return shares_work_; }
  WorkQueue& work_queue() const { return work_queue_; }

 protected:
  Recurrence(const Shape& shape, CellTraits cell, bool projected, int64_t l2_bytes)
      : shape_(shape), cell_(cell), projected_(projected), l2_bytes_(l2_bytes) {}

  virtual void pack(int64_t d, const Member& member) = 0;
  virtual void run(const Work& work, const Member& member, int thread) = 0;
  // When every thread has run direction d.
  virtual void finish(int64_t d, const Member& member) = 0;

  // Divides the work; the recurrent product is that of split_of_step, and `panel_vectors` the width of its panels. `claims`: whether
  // threads that share units take panels from each other.
  void share(int num_threads, int panel_vectors, bool claims, const int64_t* lengths, const int64_t* offsets,
             int64_t num_outputs, int num_gates, int64_t num_k) {
    split_ =
        split_of_step<Factor>(shape_, num_outputs, num_gates, num_k, l2_bytes_, num_threads, /*claims_panels=*/claims);
    shares_work_ = split_.unit_groups == 1 && split_.threads() > 1;
    if (shares_work_) work_queue_.reset(num_threads, shape_.directions * split_.row_groups);
    hidden_stride_ = padded_stride<Acc>(shape_.hidden_size);
    state_stride_ = padded_stride<Acc>(shape_.state_size);
    exchange_stride_ = padded_stride<Element>(num_k);
    const auto bytes = [](int64_t elements, auto type) { return elements * static_cast<int64_t>(sizeof(type)); };
    const int64_t least_row =
        std::min({bytes(hidden_stride_, Acc{}), bytes(state_stride_, Acc{}), bytes(exchange_stride_, Element{})});
    batch_.emplace(shape_, lengths, offsets, split_.row_groups, shares_work_ ? tile_rows(panel_vectors) : 0,
                   (kApartBytes + least_row - 1) / least_row);
    group_rows_ = batch_->most_rows();
    h_.allocate(places() * state_stride_ * sizeof(Acc));
    if (cell_.has_cell) c_.allocate(places() * hidden_stride_ * sizeof(Acc));
    copies_ = shape_.steps * group_rows_ >= kRowsPerCopy ? split_.row_groups : 1;
    packed_.allocate(shape_.directions, num_outputs, num_gates, num_k, l2_bytes_ * split_.unit_groups, copies_);
    exchange_.allocate(2 * places() * exchange_stride_ * sizeof(Element));
    scratch_stride_ = group_rows_ * kMaxVectors * Vec<Acc>::kLanes + kApartBytes / sizeof(Acc);
    scratch_.allocate(num_threads * scratch_stride_ * sizeof(Acc));
    row_pointers_stride_ = kExchanges * group_rows_ + kApartBytes / sizeof(const Element*);
    row_pointers_.allocate(num_threads * row_pointers_stride_ * sizeof(const Element*));
    const int num_groups = split_.direction_teams * split_.row_groups;
    team_barriers_.reset(new Barrier[split_.direction_teams]);
    group_barriers_.reset(new Barrier[num_groups]);
    for (int i = 0; i < split_.direction_teams; ++i) team_barriers_[i].set_size(split_.team_size());
    for (int i = 0; i < num_groups; ++i) group_barriers_[i].set_size(split_.unit_groups);
    if (claims && split_.unit_groups > 1)
      claims_.reset(new PanelClaims[shape_.directions * split_.row_groups * split_.unit_groups]);
  }
  // The product of a projection, with an exchange of its own.
  void share_projection(int64_t num_outputs, int64_t num_k) {
    projection_.allocate(shape_.directions, num_outputs, 1, num_k, l2_bytes_ * split_.unit_groups, copies_);
    projection_stride_ = padded_stride<Element>(num_k);
    projection_exchange_.allocate(places() * projection_stride_ * sizeof(Element));
  }

  // The vectors of `elements` units that a unit group owns.
  Range owned(int64_t elements, const Member& member) const {
    const int64_t vectors = num_vectors<Acc>(elements);
    const Range lines = share_of(lines_of(vectors), split_.unit_groups, member.unit_group);
    const int64_t end = lines.end * kVectorsPerLine;
    return {lines.begin * kVectorsPerLine, end < vectors ? end : vectors};
  }

  // Calls function(first vector, width) for the panels of `vectors`, of which each is some thread's to pack: row groups take turns.
  template <typename Function>
  void for_each_panel_to_pack(const PackedMatrix<Factor>& packed, Range vectors, int width, const Member& member,
                              Function function) const {
    int64_t turn = 0;
    for_each_panel(vectors, width, [&](int64_t v, int panel_width) {
      if (packed.has_copies() || turn++ % split_.row_groups == member.row_group) function(v, panel_width);
    });
  }

  // Of samples in scratch memory, in all directions.
  int64_t places() const { return shape_.directions * batch_->num_places(); }

  const Shape& shape_;
  const CellTraits cell_;
  const bool projected_;
  const int64_t l2_bytes_;
  Split split_;
  std::optional<Batch> batch_;
  int64_t group_rows_ = 0;  // the most samples of a row group
  int64_t hidden_stride_ = 0, state_stride_ = 0, exchange_stride_ = 0, projection_stride_ = 0, scratch_stride_ = 0;
  int64_t row_pointers_stride_ = 0;
  int64_t copies_ = 1;  // of packed weights
  PackedMatrix<Factor> packed_, projection_;
  Buffer h_, c_, exchange_, projection_exchange_, scratch_, row_pointers_;
  std::unique_ptr<Barrier[]> team_barriers_, group_barriers_;
  std::unique_ptr<PanelClaims[]> claims_;  // [D, row groups, unit groups]
  bool shares_work_ = false;
  mutable WorkQueue work_queue_;

  template <typename>
  friend class SequenceBase;
};

// One thread's part of one direction of a call: views of the scratch memory that concern it.
template <typename Scalar>
class SequenceBase {
 protected:
  using Acc = typename AccOf<Scalar>::type;
  using Factor = typename FactorOf<Scalar>::type;
  using Element = ElementOf<Factor>;
  using V = Vec<Acc>;
  static constexpr int kLanes = V::kLanes;
  static constexpr bool kStoresAcc = stores_acc<Scalar>();

  SequenceBase(const Recurrence<Factor>& job, const Work& work, const Member& member, int thread, const void* mask,
               DropoutSite site)
      : job_(job),
        s_(job.shape_),
        cell_(job.cell_),
        projected_(job.projected_),
        batch_(*job.batch_),
        packed_(job.packed_),
        projection_(job.projection_),
        d_(work.direction),
        whom_{work.direction, member.row_group},
        member_(member),
        num_unit_groups_(job.split_.unit_groups),
        unit_group_(member.unit_group),
        barrier_(job.group_barriers_[member.direction_team * job.split_.row_groups + member.row_group]),
        group_(work.group),
        units_(job.owned(s_.hidden_size, member)),
        outputs_(job.owned(s_.state_size, member)),
        hidden_stride_(job.hidden_stride_),
        state_stride_(job.state_stride_),
        exchange_stride_(job.exchange_stride_),
        projection_stride_(job.projection_stride_),
        h_(rows_of<Acc>(job.h_, 0, state_stride_)),
        c_(rows_of<Acc>(job.c_, 0, hidden_stride_)),
        exchange_{rows_of<Element>(job.exchange_, 0, exchange_stride_),
                  rows_of<Element>(job.exchange_, 1, exchange_stride_)},
        projection_exchange_(rows_of<Element>(job.projection_exchange_, 0, projection_stride_)),
        scratch_(job.scratch_.template as<Acc>() + thread * job.scratch_stride_),
        state_mask_(site == DropoutSite::kState ? typed<Acc>(mask) : nullptr),
        candidate_mask_(site == DropoutSite::kCandidate ? typed<Acc>(mask) : nullptr) {
    const Element** rows = job.row_pointers_.template as<const Element*>() + thread * job.row_pointers_stride_;
    const auto point = [&](const Element* exchange, int64_t stride) {
      const Element** first = rows;
      for (int64_t i = 0; i < group_.count; ++i) *rows++ = exchange + i * stride;
      return first;
    };
    exchange_rows_[0] = point(exchange_[0], exchange_stride_);
    exchange_rows_[1] = point(exchange_[1], exchange_stride_);
    if (projected_) projection_rows_ = point(projection_exchange_, projection_stride_);
  }

  // Row of sample `i` of the group in a tensor [D, B, width].
  int64_t state_row(int64_t i) const { return d_ * s_.batch + group_.samples[i]; }
  // The time at which sample `i` takes its step `step`, which is its number in the order of forward.
  int64_t time(int64_t i, int64_t step) const { return d_ == 0 ? step : group_.lengths[i] - 1 - step; }

  // For the panels that `packed` is cut into; `widest`: of the width from which atoms got their size.
  ProductMode mode(const PackedMatrix<Factor>& packed, bool widest) const {
    return {packed.outgrows_cache(), widest || !job_.shares_work()};
  }

  // The claims of a unit group's panels of hidden units; nullptr: each does its own.
  PanelClaims* claims(int unit_group) const {
    const int64_t group = d_ * job_.split_.row_groups + member_.row_group;
    return job_.claims_ ? &job_.claims_[group * num_unit_groups_ + unit_group] : nullptr;
  }
  // The hidden units of another unit group of this row group.
  Range units_of(int unit_group) const {
    return job_.owned(s_.hidden_size, {true, member_.direction_team, member_.row_group, unit_group});
  }

  // Leaves the samples from about the middle of `rows` on, with step `step` to do next, to a thread that has nothing to do.
  FASTRNN_INLINE void share_work(int64_t rows, int64_t step) {
    if (job_.shares_work() && job_.work_queue().wanted()) give_half(rows, step);
  }

  template <typename Lanes>
  FASTRNN_INLINE V keep(int64_t i, int64_t j, Lanes lanes) const {
    return candidate_mask_ ? load(candidate_mask_ + state_row(i) * s_.hidden_size + j, lanes) : V(1);
  }

 private:
  __attribute__((noinline)) void give_half(int64_t rows, int64_t step) {
    const int64_t kept = group_.middle(rows);
    if (kept > 0 && job_.work_queue().give({d_, group_.after(kept), step})) group_.count = kept;
  }

  // The group's rows in a scratch array [copies, D, places, stride].
  template <typename T>
  T* rows_of(const Buffer& buffer, int64_t copy, int64_t stride) const {
    return buffer.template as<T>() + ((copy * s_.directions + d_) * batch_.num_places() + group_.first) * stride;
  }

 protected:
  const Recurrence<Factor>& job_;
  const Shape& s_;
  const CellTraits cell_;
  const bool projected_;
  const Batch& batch_;
  const PackedMatrix<Factor>&packed_, &projection_;
  const int64_t d_;
  const PackedFor whom_;
  const Member member_;
  const int num_unit_groups_, unit_group_;
  Barrier& barrier_;
  RowGroup group_;       // may lose samples
  const Range units_;    // owned vectors of hidden units
  const Range outputs_;  // owned vectors of h: the same ones unless there is a projection
  const int64_t hidden_stride_, state_stride_, exchange_stride_, projection_stride_;
  Acc* const h_;                // [group's rows, state_stride]       carried: h, or its gradient
  Acc* const c_;                // [group's rows, hidden_stride]      c, or its gradient
  Element* const exchange_[2];  // [group's rows, exchange_stride]    what the product reads, of even and odd steps
  const Element** exchange_rows_[2];  // [group's rows]  of each, where it lies
  const Element* const* projection_rows_ = nullptr;
  Element* const projection_exchange_;  // [group's rows, projection_stride]  what the projection's product reads
  Acc* const scratch_;                  // [rows, panel's vectors, lanes]     what a product writes
  const Acc* const state_mask_;         // [D, B, P]  may be nullptr
  const Acc* const candidate_mask_;     // [D, B, H]  may be nullptr
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
