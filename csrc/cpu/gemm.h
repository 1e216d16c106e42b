// The matrix product for one instruction set: picks the way for a shape and the instantiation for a storage type.
#pragma once

#include "gemm_product.h"
#include "gemm_thin.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <typename Scalar>
void multiply(const ProductParts<Scalar>& p, int64_t num_threads) {
  if (p.count == 1 && ThinProduct<Scalar>::fits(p)) {
    ThinProduct<Scalar> product(p, num_threads);
    run_team(product, static_cast<int>(num_threads));
    product.add_squares();
    return;
  }
  int64_t rows = p.m;
  const auto blocks = [&](int64_t num_rows) {
    return choose_blocks<typename FactorOf<Scalar>::type>(num_rows, p.columns(), p.longest_run(), p.num_runs,
                                                          num_threads);
  };
  if constexpr (!std::is_same_v<Scalar, typename AccOf<Scalar>::type>)
    if (p.num_runs > 1 || blocks(rows).depth < p.k) rows = least(rows, Product<Scalar>::rows_of_slice(p.columns()));
  for (int64_t row = 0; row < p.m; row += rows) {
    const ProductParts<Scalar> slice = p.slice(row, least(rows, p.m - row));
    const Blocks chosen = blocks(slice.m);
    Product<Scalar> product(slice, chosen);
    run_team(product, static_cast<int>(least(num_threads, p.num_runs * chosen.num_strips * chosen.num_groups)));
    product.add_squares();
  }
}

template <typename Scalar>
void multiply(const MatmulParams& p, int num_threads) {
  const Operand<Scalar> a{static_cast<const Scalar*>(p.a), p.m, p.a_row, p.a_col};
  ProductParts<Scalar> parts{p.m, p.k, a, {p.bias[0], p.bias[1]}, p.accumulate};
  parts.add({static_cast<const Scalar*>(p.b), p.n, p.b_col, p.b_row}, p.out, p.out_row, p.squares);
  multiply(parts, useful_threads(p.m * p.n * p.k, num_threads));
}

template <typename Scalar>
void multiply(const JointMatmulParams& p, int num_threads) {
  const auto multiply_some = [&](ProductParts<Scalar> parts) {
    multiply(parts, useful_threads(p.m * parts.columns() * p.k, num_threads));
  };
  const ProductParts<Scalar> none{p.m, p.k, Operand<Scalar>::of_lines(p.a, p.a_first, p.m), {}, false};
  ProductParts<Scalar> together = none;
  together.num_runs = p.num_runs, together.run_ends = p.run_ends;
  for (int i = 0; i < p.num_parts; ++i) {
    const JointMatmulParams::Part& part = p.parts[i];
    const bool few = p.m <= kFew || part.n <= kFew;
    ProductParts<Scalar> alone = none;
    (few ? alone : together).add(Operand<Scalar>::of_lines(part.b, 0, part.n), part.out, part.n, part.squares);
    if (few) multiply_some(alone);
  }
  if (together.count > 0) multiply_some(together);
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
