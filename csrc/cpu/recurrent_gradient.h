// What is done to the recurrent gradient r_t = (dh, dc) before y's gradient is added: its norm is recorded, it is clipped.
//
// Squares are summed in double, where those of 1e-30 and of 1e+30 are ordinary numbers. The threshold is in units of the
// unscaled gradient, and so is the norm.
#pragma once

#include <cmath>

#include "recurrence_common.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// What one thread's units say about one sample's r_t.
struct Record {
  double sum_of_squares = 0;
  bool clamped = false;
};

class RecurrentGradient {
 public:
  explicit RecurrentGradient(const BackwardParams& params)
      : mode_(params.clip_mode),
        records_norms_(params.norms != nullptr),
        records_(params.norms != nullptr || params.clipped != nullptr),
        scale_(params.grad_scale ? *params.grad_scale : 1.0),
        threshold_(params.clip_threshold) {}

  bool records() const { return records_; }
  bool by_norm() const { return mode_ == ClipMode::kNorm; }
  bool active() const { return records_ || mode_ != ClipMode::kNone; }

  bool takes_squares() const { return by_norm() || records_norms_; }
  bool clamps() const { return mode_ == ClipMode::kValue; }
  double limit() const { return threshold_ * scale_; }

  double norm(double sum_of_squares) const { return std::sqrt(sum_of_squares) / scale_; }
  // A norm that is not finite passes the gradient on unchanged.
  bool clips_norm(double norm) const { return by_norm() && norm > threshold_ && norm < HUGE_VAL; }
  double factor(double norm) const { return clips_norm(norm) ? threshold_ / norm : 1.0; }

 private:
  ClipMode mode_;
  bool records_norms_;
  bool records_;
  double scale_;
  double threshold_;
};

// Takes one thread's share of dh or dc into account; in value mode also clamps it.
template <typename T>
__attribute__((noinline)) void visit(const RecurrentGradient& clip, T* gradient, Range vectors, int64_t size,
                                     Record& record) {
  using V = Vec<T>;
  using Wide = typename WideOf<T>::type;
  const V limit(static_cast<T>(clip.limit()));
  const bool clamps = clip.clamps(), squares = clip.takes_squares();
  Wide sum = {};
  typename V::Bits clamped = {};
  for_each_vector<T>(vectors, size, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    const V value = load(gradient + j, lanes);
    if (squares) {
      const Wide wide = __builtin_convertvector(value.raw, Wide);
      sum += wide * wide;
    }
    if (clamps) {
      const typename V::Bits above = value > limit, below = value < -limit;
      clamped |= above | below;
      store(gradient + j, select(above, limit, select(below, -limit, value)), lanes);
    }
  });
  if (squares) record.sum_of_squares += sum_of_lanes<V::kLanes>(sum);
  if (clamps)
    for (int lane = 0; lane < V::kLanes; ++lane) record.clamped |= clamped[lane] != 0;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
