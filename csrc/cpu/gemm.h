// The matrix product for one instruction set: picks the way for a shape and the instantiation for a storage type.
#pragma once

#include "gemm_product.h"
#include "gemm_thin.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// 16-bit storage and a k of several rounds: the sums need memory of their own. Part of the rows at a time, to bound it.
template <typename Scalar>
void multiply_in_parts(const MatmulParams& p, int64_t num_threads) {
  const int64_t sums_row = Product<Scalar>::sums_row(p.n);
  const int64_t part_rows = least(p.m, most(512, (int64_t{2} << 20) / sums_row));
  Buffer sums;
  sums.allocate(part_rows * sums_row * static_cast<int64_t>(sizeof(float)));
  for (int64_t row = 0; row < p.m; row += part_rows) {
    MatmulParams part = p;
    part.m = least(part_rows, p.m - row);
    part.a = static_cast<const Scalar*>(p.a) + row * p.a_row;
    part.out = static_cast<Scalar*>(p.out) + row * p.out_row;
    Product<Scalar> product(part, choose_blocks<typename FactorOf<Scalar>::type>(part.m, p.n, p.k, num_threads),
                            sums.as<float>());
    run_team(product, static_cast<int>(num_threads));
    if (p.squares) *p.squares += product.sum_of_squares();
  }
}

template <typename Scalar>
void multiply(const MatmulParams& p, int num_threads) {
  using Acc = typename AccOf<Scalar>::type;
  const int64_t threads = useful_threads(p.m * p.n * p.k, num_threads);
  if (ThinProduct<Scalar>::fits(p)) {
    ThinProduct<Scalar> product(p, threads);
    run_team(product, static_cast<int>(threads));
    if (p.squares) *p.squares += sum_of_squares(static_cast<const Scalar*>(p.out), p.m, p.out_row, p.n);
    return;
  }
  const Blocks blocks = choose_blocks<typename FactorOf<Scalar>::type>(p.m, p.n, p.k, threads);
  if constexpr (!std::is_same_v<Scalar, Acc>)
    if (blocks.depth < p.k) return multiply_in_parts<Scalar>(p, threads);
  Product<Scalar> product(p, blocks, nullptr);
  run_team(product, static_cast<int>(least(threads, blocks.num_strips * blocks.num_groups)));
  if (p.squares) *p.squares += product.sum_of_squares();
}

void matmul(const MatmulParams& p, int num_threads) {
  if (p.m <= 0 || p.n <= 0) return;
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

}  // namespace fastrnn::cpu::FASTRNN_ISA
