// The matrix product for one instruction set: picks the way for a shape and the instantiation for a storage type.
#pragma once

#include "gemm_product.h"
#include "gemm_thin.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// 16-bit storage and a k of several rounds: the sums need memory of their own. Part of the rows at a time, to bound it.
template <typename Scalar>
void multiply_in_slices(const ProductParts<Scalar>& p, int64_t num_threads) {
  const int64_t sums_row = Product<Scalar>::sums_row(p.columns());
  const int64_t slice_rows = least(p.m, most(512, (int64_t{2} << 20) / sums_row));
  Buffer sums;
  sums.allocate(slice_rows * sums_row * static_cast<int64_t>(sizeof(float)));
  for (int64_t row = 0; row < p.m; row += slice_rows) {
    ProductParts<Scalar> slice = p;
    slice.m = least(slice_rows, p.m - row);
    slice.a.data = p.a.at(row, 0);
    for (int i = 0; i < p.count; ++i) slice.parts[i].out += row * p.parts[i].out_row;
    Product<Scalar> product(slice,
                            choose_blocks<typename FactorOf<Scalar>::type>(slice.m, p.columns(), p.k, num_threads),
                            sums.as<float>());
    run_team(product, static_cast<int>(num_threads));
    product.add_squares();
  }
}

template <typename Scalar>
void multiply(const ProductParts<Scalar>& p, int64_t num_threads) {
  using Acc = typename AccOf<Scalar>::type;
  const Blocks blocks = choose_blocks<typename FactorOf<Scalar>::type>(p.m, p.columns(), p.k, num_threads);
  if constexpr (!std::is_same_v<Scalar, Acc>)
    if (blocks.depth < p.k) return multiply_in_slices<Scalar>(p, num_threads);
  Product<Scalar> product(p, blocks, nullptr);
  run_team(product, static_cast<int>(least(num_threads, blocks.num_strips * blocks.num_groups)));
  product.add_squares();
}

template <typename Scalar>
void multiply(const MatmulParams& p, int num_threads) {
  const int64_t threads = useful_threads(p.m * p.n * p.k, num_threads);
  if (ThinProduct<Scalar>::fits(p)) {
    ThinProduct<Scalar> product(p, threads);
    run_team(product, static_cast<int>(threads));
    if (p.squares) *p.squares += sum_of_squares(static_cast<const Scalar*>(p.out), p.m, p.out_row, p.n);
    return;
  }
  const Operand<Scalar> a{static_cast<const Scalar*>(p.a), p.m, p.a_row, p.a_col};
  ProductParts<Scalar> parts{p.m, p.k, a, {p.bias[0], p.bias[1]}, p.accumulate};
  parts.add({static_cast<const Scalar*>(p.b), p.n, p.b_col, p.b_row}, p.out, p.out_row, p.squares);
  multiply(parts, threads);
}

// A part by itself, of which b's halves are two products.
template <typename Scalar>
void multiply_part(const JointMatmulParams& p, const JointMatmulParams::Part& part, int num_threads) {
  MatmulParams m{};
  m.m = p.m, m.n = part.n, m.a_row = p.a_row, m.a_col = p.a_col, m.b_col = 1;
  m.out = part.out, m.out_row = part.n, m.scalar = p.scalar;
  const auto add = [&](int64_t first, int64_t last, const void* b, int64_t b_row) {
    m.k = last - first;
    m.a = static_cast<const Scalar*>(p.a) + first * p.a_col;
    m.b = b, m.b_row = b_row;
    m.squares = last == p.k ? part.squares : nullptr;
    multiply<Scalar>(m, num_threads);
    m.accumulate = true;
  };
  if (part.split > 0 || p.k == 0) add(0, part.split, part.b, part.b_row);
  if (part.split < p.k) add(part.split, p.k, part.tail, part.tail_row);
}

template <typename Scalar>
void multiply(const JointMatmulParams& p, int num_threads) {
  const Operand<Scalar> a{static_cast<const Scalar*>(p.a), p.m, p.a_row, p.a_col};
  ProductParts<Scalar> parts{p.m, p.k, a, {}, false};
  for (int i = 0; i < p.num_parts; ++i) {
    const JointMatmulParams::Part& part = p.parts[i];
    if (p.m <= kFew || part.n <= kFew)
      multiply_part<Scalar>(p, part, num_threads);
    else
      parts.add({static_cast<const Scalar*>(part.b), part.n, 1, part.b_row, part.split,
                 static_cast<const Scalar*>(part.tail), part.tail_row},
                part.out, part.n, part.squares);
  }
  if (parts.count > 0) multiply(parts, useful_threads(p.m * parts.columns() * p.k, num_threads));
}

template <typename Params>
void multiply_by_scalar(const Params& p, int num_threads) {
#if defined(FASTRNN_AVX512_BF16)  // no other type comes here (isa_for)
  multiply<Bfloat16>(p, num_threads);
#else
  switch (p.scalar) {
    case ScalarKind::kFloat: return multiply<float>(p, num_threads);
    case ScalarKind::kDouble: return multiply<double>(p, num_threads);
    case ScalarKind::kHalf: return multiply<Half>(p, num_threads);
    case ScalarKind::kBfloat16: return multiply<Bfloat16>(p, num_threads);
  }
#endif
}

void matmul(const MatmulParams& p, int num_threads) {
  if (p.m > 0 && p.n > 0) multiply_by_scalar(p, num_threads);
}

void joint_matmul(const JointMatmulParams& p, int num_threads) {
  if (p.m > 0) multiply_by_scalar(p, num_threads);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
