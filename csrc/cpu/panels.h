// Packing of weight matrices into the panels that product.h reads.
//
// Panels are laid out by output: the panel that starts at output vector v lies at v * gates * lanes * num_k, whatever the widths
// of the panels before it, so each thread cuts its own range of outputs into panels. Inside, the gates of a vector of outputs
// lie side by side: [k][output vector][gate][lane]. Lanes past the last output are zero. Where the last vector has half as many
// outputs as lanes, or fewer, its gates share vectors (GateLayout).
#pragma once

#include "buffer.h"
#include "factors.h"
#include "transpose.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename T>
constexpr int64_t num_vectors(int64_t elements) {
  return (elements + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
}

// The elements of vector `index` of `elements` that exist, values or steps of k in factors: all of them, or a part. Calls
// function(Whole) or function(Part).
template <typename T, typename Function>
FASTRNN_INLINE void with_lanes(int64_t index, int64_t elements, Function function) {
  constexpr int kElements = Vec<T>::kLanes * FactorTraits<T>::kSteps;
  const int64_t left = elements - index * kElements;
  if (left >= kElements)
    function(Whole{});
  else if (left > 0)
    function(Part{static_cast<int>(left)});
}

// Whether a lane is one of those.
FASTRNN_INLINE constexpr bool exists(int, Whole) { return true; }
FASTRNN_INLINE constexpr bool exists(int lane, Part part) { return lane < part.lanes; }

// Where the gates lie in a panel of `width` vectors of outputs, from vector `v` on, and in what a product with it gives. Those of a
// last vector that is at most half full, which is a panel by itself where there are several gates, follow each other closer than by a vector. Who reads a whole vector
// of a gate there finds, behind its outputs, what is no output: of the next gate or row, or of memory that nobody has written; the last
// one ends within `width` * gates vectors of the row's begin. The lanes of c and h behind the last unit may hold anything.
struct GateLayout {
  int64_t stride;  // from gate to gate of a vector of outputs, in elements
  int vectors;     // of the panel

  // The vectors exist.
  template <typename T>
  FASTRNN_INLINE static GateLayout of(int64_t v, int width, int num_gates, int64_t num_outputs) {
    constexpr int kLanes = Vec<T>::kLanes;
    const int64_t outputs = num_outputs - v * kLanes;
    if (num_gates == 1 || outputs > kLanes / 2) return {kLanes, width * num_gates};
    int stride = kLanes / 2;
    while (stride / 2 >= outputs) stride /= 2;
    return {stride, (num_gates * stride + kLanes - 1) / kLanes};
  }
};

// Whose packed weights: of a direction, for a row group of its samples.
struct PackedFor {
  int64_t direction, row_group;
};

// The packed weights of one product, for each direction, and if there are copies for each row group.
template <typename Factor>
class PackedMatrix {
  using V = Vec<Factor>;
  using Traits = FactorTraits<Factor>;

 public:
  // `cache_bytes`: the second-level caches of the threads that divide the outputs among them. What fits in there has `copies`.
  void allocate(int64_t directions, int64_t num_outputs, int num_gates, int64_t num_k, int64_t cache_bytes,
                int64_t copies) {
    num_outputs_ = num_outputs;
    num_gates_ = num_gates;
    num_k_ = num_k;
    size_ = num_vectors<Factor>(num_outputs) * V::kLanes * num_gates * num_factors<Factor>(num_k);
    outgrows_cache_ = size_ * static_cast<int64_t>(sizeof(Factor)) > cache_bytes;
    copies_ = outgrows_cache_ ? 1 : copies;
    data_.allocate(directions * copies_ * size_ * static_cast<int64_t>(sizeof(Factor)));
  }

  bool outgrows_cache() const { return outgrows_cache_; }
  bool has_copies() const { return copies_ > 1; }

  GateLayout layout_of(int64_t first_vector, int width) const {
    return GateLayout::of<typename AccOf<Factor>::type>(first_vector, width, num_gates_, num_outputs_);
  }

  Factor* panel(PackedFor whom, int64_t first_vector) const {
    return data_.as<Factor>() + (whom.direction * copies_ + (has_copies() ? whom.row_group : 0)) * size_ +
           first_vector * V::kLanes * num_gates_ * num_factors<Factor>(num_k_);
  }

  // Packs `width` output vectors of w [num_gates * num_outputs, num_k]: an output is a row.
  template <typename Scalar>
  void pack_rows(const Scalar* w, PackedFor whom, int64_t first_vector, int width) const {
    const GateLayout layout = layout_of(first_vector, width);
    const int64_t stride = layout.vectors * V::kLanes;
    Factor* out = panel(whom, first_vector);
    if (layout.stride < V::kLanes) {
      for (int v = 0; v < layout.vectors; ++v, out += V::kLanes)
        pack_shared_vector(w, first_vector, v, layout.stride, stride, out);
      return;
    }
    for (int64_t v = first_vector; v < first_vector + width; ++v) {
      for (int gate = 0; gate < num_gates_; ++gate, out += V::kLanes) {
        const Scalar* const from = w + (gate * num_outputs_ + v * V::kLanes) * num_k_;
        with_lanes<typename AccOf<Factor>::type>(v, num_outputs_, [&](auto outputs) __attribute__((always_inline)) {
          pack_vector(from, outputs, stride, out);
        });
      }
    }
  }

  // Packs `width` output vectors of w [num_k, num_outputs]: an output is a column, and there is one gate.
  template <typename Scalar>
  void pack_columns(const Scalar* w, PackedFor whom, int64_t first_vector, int width) const {
    Factor* out = panel(whom, first_vector);
    for (int64_t k = 0; k < num_k_; k += Traits::kSteps) {
      for (int64_t v = first_vector; v < first_vector + width; ++v, out += V::kLanes) {
        with_lanes<typename AccOf<Factor>::type>(v, num_outputs_, [&](auto lanes) __attribute__((always_inline)) {
          const Scalar* const from = w + k * num_outputs_ + v * V::kLanes;
          store(out, Traits::across_k(from, k + 1 < num_k_ ? from + num_outputs_ : nullptr, lanes), Whole{});
        });
      }
    }
  }

 private:
  // One gate of a vector of outputs, a square of outputs and k at a time.
  template <typename Scalar, typename Outputs>
  FASTRNN_INLINE void pack_vector(const Scalar* from, Outputs outputs, int64_t stride, Factor* out) const {
    constexpr int kStep = V::kLanes * Traits::kSteps;
    constexpr int kLines = kStep * V::kLanes * static_cast<int>(sizeof(Scalar)) / 64;
    // The next vector's rows lie behind these. Its turn comes when the other gates have had theirs.
    const char* ahead = reinterpret_cast<const char*>(from + V::kLanes * num_k_);
    for (int64_t k = 0; k < num_k_; k += kStep, out += V::kLanes * stride) {
#pragma GCC unroll 16
      for (int line = 0; line < kLines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      pack_square<Scalar>(
          k, stride, out, [&](int i) __attribute__((always_inline)) { return exists(i, outputs); },
          [&](int i) __attribute__((always_inline)) { return from + i * num_k_; });
    }
  }

  // Vector `index` of those that the gates of the last outputs, from vector `v` on, share, `gate_stride` lanes each.
  template <typename Scalar>
  __attribute__((noinline)) void pack_shared_vector(const Scalar* w, int64_t v, int index, int64_t gate_stride,
                                                    int64_t stride, Factor* out) const {
    constexpr int kStep = V::kLanes * Traits::kSteps;
    const Scalar* rows[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) {
      const int64_t gate = (index * V::kLanes + i) / gate_stride;
      const int64_t output = v * V::kLanes + i % gate_stride;
      rows[i] = gate < num_gates_ && output < num_outputs_ ? w + (gate * num_outputs_ + output) * num_k_ : nullptr;
    }
    for (int64_t k = 0; k < num_k_; k += kStep, out += V::kLanes * stride)
      pack_square<Scalar>(
          k, stride, out, [&](int i) __attribute__((always_inline)) { return rows[i] != nullptr; },
          [&](int i) __attribute__((always_inline)) { return rows[i]; });
  }

  // As many steps of k, from `k` on, as outputs. row(i) is that of output i, which is there if is_there(i), else zeros are.
  template <typename Scalar, typename IsThere, typename Row>
  FASTRNN_INLINE void pack_square(int64_t k, int64_t stride, Factor* out, IsThere is_there, Row row) const {
    with_lanes<Factor>(k / (V::kLanes * Traits::kSteps), num_k_, [&](auto steps) __attribute__((always_inline)) {
      V square[V::kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i) square[i] = is_there(i) ? Traits::along_k(row(i) + k, steps) : V{};
      transpose<Factor>(square);
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i)
        if (exists(i * Traits::kSteps, steps)) store(out + i * stride, square[i], Whole{});
    });
  }

  int64_t num_outputs_ = 0, num_k_ = 0, size_ = 0;
  int num_gates_ = 1;
  bool outgrows_cache_ = false;
  int64_t copies_ = 1;
  Buffer data_;
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
