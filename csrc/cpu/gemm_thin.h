// Products with a handful of rows (a step of one sample) or of columns (an input of one feature): one operand is a few vectors
// of k, the other is read once and so not worth packing. Where its k is adjacent in memory, its values are multiplied and
// summed along k; where its rows are, rows times one value of k each are added up.
#pragma once

#include "gemm_product.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Scalar>
class ThinProduct final : public TeamJob {
  using Acc = typename AccOf<Scalar>::type;
  using V = Vec<Acc>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kChunk = 512;  // outputs of a task: their sums stay in L1

 public:
  static bool fits(const ProductParts<Scalar>& p) { return p.m <= kFew || p.columns() <= kFew; }

  // Of a single part.
  explicit ThinProduct(const ProductParts<Scalar>& p, int64_t num_threads)
      : p_(p), n_(p.columns()), few_are_rows_(p.m <= n_) {
    few_ = few_are_rows_ ? p.a : p.parts[0].b;
    many_ = few_are_rows_ ? p.parts[0].b : p.a;
    task_size_ = least(kChunk, round_up(ceil_div(many_.rows, num_threads), 64));
  }

  void prepare(int num_threads) override {
    const int64_t bias_size = round_up(n_, kLanes), depth = round_up(p_.k, kLanes);
    workspace_.allocate((bias_size + few_.rows * depth + num_threads * few_.rows * kChunk) *
                        static_cast<int64_t>(sizeof(Acc)));
    Acc* const memory = workspace_.as<Acc>();
    bias_ = memory;
    values_ = memory + bias_size;
    sums_ = values_ + few_.rows * depth;
    depth_ = depth;
    sum_biases<Acc, Scalar>(p_.bias, n_, bias_size, bias_);
    for (int64_t f = 0; f < few_.rows; ++f) {
      Acc* const values = values_ + f * depth;
      if (few_.k_step == 1)
        for_each_vector<Acc>(p_.k,
                             [&](int64_t k, auto part) { store(values + k, load(few_.at(f, k), part), Whole{}); });
      else
        for (int64_t k = 0; k < p_.k; ++k) values[k] = load(few_.at(f, k), Part{1}).raw[0];
    }
  }

  void add_squares() const {
    if (p_.parts[0].squares) *p_.parts[0].squares += sum_of_squares(output().data, p_.m, output().row, n_);
  }

  void work(int thread) override {
    Acc* const sums = sums_ + thread * few_.rows * kChunk;
    for (int64_t first; (first = next_.fetch_add(task_size_, std::memory_order_relaxed)) < many_.rows;) {
      const int64_t count = least(task_size_, many_.rows - first);
      if (many_.k_step == 1)
        multiply_along_k(first, count, sums);
      else
        add_rows(first, count, sums);
      for (int64_t f = 0; f < few_.rows; ++f) store_sums(f, first, count, sums + f * kChunk);
    }
  }

 private:
  void multiply_along_k(int64_t first, int64_t count, Acc* sums) const {
    for (int64_t j = 0; j < count; j += kLanes) {
      const Scalar* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = many_.at(first + least(j + i, count - 1), 0);
      for (int64_t f = 0; f < few_.rows; ++f) {
        const Acc* const values = values_ + f * depth_;
        V sum[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) sum[i] = V(0);
        for_each_vector<Acc>(p_.k, [&](int64_t k, auto part) __attribute__((always_inline)) {
          const V value = load(values + k, part);
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) sum[i] += value * load(rows[i] + k, part);
        });
        transpose<Acc>(sum);
#pragma GCC unroll 16
        for (int i = 1; i < kLanes; ++i) sum[0] += sum[i];
        store(sums + f * kChunk + j, sum[0], Whole{});
      }
    }
  }

  void add_rows(int64_t first, int64_t count, Acc* sums) const {
    constexpr int kSteps = 8;  // of k for each pass over the sums
    for (int64_t f = 0; f < few_.rows; ++f)
      for (int64_t j = 0; j < count; j += kLanes) store(sums + f * kChunk + j, V(0), Whole{});
    int64_t k = 0;
    for (; k + kSteps <= p_.k; k += kSteps) add_rows<kSteps>(first, count, k, sums);
    for (; k < p_.k; ++k) add_rows<1>(first, count, k, sums);
  }

  template <int kSteps>
  void add_rows(int64_t first, int64_t count, int64_t k, Acc* sums) const {
    const Scalar* rows[kSteps];
    for (int i = 0; i < kSteps; ++i) rows[i] = many_.at(first, k + i);
    for (int64_t f = 0; f < few_.rows; ++f) {
      V value[kSteps];
#pragma GCC unroll 8
      for (int i = 0; i < kSteps; ++i) value[i] = values_[f * depth_ + k + i];
      Acc* const out = sums + f * kChunk;
      for_each_vector<Acc>(count, [&](int64_t j, auto part) __attribute__((always_inline)) {
        V sum = load(out + j, Whole{});
#pragma GCC unroll 8
        for (int i = 0; i < kSteps; ++i) sum += value[i] * load(rows[i] + j, part);
        store(out + j, sum, Whole{});
      });
    }
  }

  void store_sums(int64_t f, int64_t first, int64_t count, Acc* sums) const {
    const auto [out, out_row] = output();
    if (few_are_rows_) {
      for_each_vector<Acc>(count, [&](int64_t j, auto part) {
        store(sums + j, load(sums + j, Whole{}) + load(bias_ + first + j, part), Whole{});
      });
      add_to_row(sums, count, out + f * out_row + first, p_.accumulate);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        Scalar* const element = out + (first + i) * out_row + f;
        V sum = sums[i] + bias_[f];
        if (p_.accumulate) sum += load(element, Part{1});
        store(element, sum, Part{1});
      }
    }
  }

  struct Output {
    Scalar* data;
    int64_t row;
  };
  Output output() const { return {p_.parts[0].out, p_.parts[0].out_row}; }

  const ProductParts<Scalar> p_;
  const int64_t n_;
  const bool few_are_rows_;  // of a, else columns of b
  Operand<Scalar> few_, many_;
  int64_t task_size_, depth_ = 0;
  Buffer workspace_;
  Acc* bias_ = nullptr;    // [n]
  Acc* values_ = nullptr;  // [few, depth_]: the few vectors
  Acc* sums_ = nullptr;    // [threads, few, kChunk]
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace fastrnn::cpu::FASTRNN_ISA
