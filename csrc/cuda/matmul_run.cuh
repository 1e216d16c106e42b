// Launches the kernels of matmul.cuh for one storage type; instantiate/matmul_*.cu compile it.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "launch.cuh"
#include "matmul.cuh"
#include "matmul.h"
#include "scratch.h"
#include "slices.h"

namespace fastrnn::cuda {

// One pass over a layer: its launches and products.
template <typename Scalar, typename Params>
class MatmulPass {
 public:
  using Acc = AccOf<Scalar>;

  MatmulPass(const char* pass, const Params& params, const Run& run)
      : params_(params),
        shape_(params.shape),
        run_(run),
        what_(", plan matmul, " + describe(shape_)),
        scratch_(run, pass + what_) {}

  int64_t samples() const { return shape_.directions * shape_.batch; }
  bool projects() const { return params_.w_hr[0] != nullptr; }

  template <typename T>
  void* take(int64_t count) {
    return scratch_.take(count * static_cast<int64_t>(sizeof(T)));
  }

  void clear(void* data, int64_t bytes) const { cuda::clear(launch_of("memset", 1), data, static_cast<size_t>(bytes)); }

  Launch launch_of(const char* name, int64_t grid) const {
    Launch result{};
    result.what = name + what_;
    result.stream = run_.stream;
    constexpr int64_t kMostBlocks = 1 << 20;  // which then take turns
    result.grid = static_cast<int>(std::min(grid, kMostBlocks));
    result.threads = kThreads;
    return result;
  }

  // By threads, one for each of `count`.
  template <typename... Arguments>
  void launch_over(const char* name, int64_t count, void (*kernel)(Arguments...), const Arguments&... arguments) const {
    launch(launch_of(name, (count + kThreads - 1) / kThreads), kernel, arguments...);
  }
  // By blocks, one for each of `count`, with a double of shared memory a thread.
  template <typename... Arguments>
  void launch_blocks(const char* name, int64_t count, void (*kernel)(Arguments...),
                     const Arguments&... arguments) const {
    Launch blocks = launch_of(name, count);
    blocks.shared_bytes = kThreads * sizeof(double);
    launch(blocks, kernel, arguments...);
  }

  // The products out [B, n] = operand [B, k] times each direction's weights [k, n], or [n, k] transposed; none without weights.
  std::vector<std::function<void()>> products(const void* operand, const void* const (&weights)[kMaxDirections],
                                              bool transposed, void* out, int64_t n, int64_t k) const {
    std::vector<std::function<void()>> result;
    for (int64_t d = 0; d < shape_.directions && shape_.batch > 0 && weights[d]; ++d) {
      Product product{shape_.batch, n, k, nullptr, weights[d], transposed, nullptr, shape_.scalar};
      product.a = static_cast<const Scalar*>(operand) + d * shape_.batch * k;
      product.out = static_cast<Acc*>(out) + d * shape_.batch * n;
      result.push_back(run_.make_product(product));
    }
    return result;
  }

 private:
  const Params& params_;
  const Shape& shape_;
  const Run& run_;
  const std::string what_;
  Scratch scratch_;
};

inline void run_all(const std::vector<std::function<void()>>& calls) {
  for (const auto& call : calls) call();
}

template <typename Scalar, typename Cell>
void forward_by_matmul(const ForwardParams& params, const Run& run) {
  using Acc = AccOf<Scalar>;
  const int64_t H = params.shape.hidden_size, P = params.shape.state_size, GH = Cell::kGates * H;
  MatmulPass<Scalar, ForwardParams> pass("recurrence_forward", params, run);
  const int64_t N = pass.samples();
  MatmulWorkspace w{};
  w.operand = pass.template take<Scalar>(N * P);
  w.product = pass.template take<Acc>(N * GH);
  w.h = pass.template take<Acc>(N * P);
  if (Cell::kHasCell) w.c = pass.template take<Acc>(N * H);
  if (pass.projects()) {
    w.inner_operand = pass.template take<Scalar>(N * H);
    w.inner_product = pass.template take<Acc>(N * P);
  }
  const auto multiply = pass.products(w.operand, params.w_hh, /*transposed=*/true, w.product, GH, P);
  const auto project = pass.products(w.inner_operand, params.w_hr, /*transposed=*/true, w.inner_product, P, H);
  pass.launch_over("matmul_begin", N * H, matmul_begin<Scalar>, params, w);
  for (int64_t step = 0; step < params.shape.steps; ++step) {
    run_all(multiply);
    pass.launch_over("matmul_cell_forward", N * H, matmul_cell_forward<Scalar, Cell>, params, w, step);
    if (!pass.projects()) continue;
    run_all(project);
    pass.launch_over("matmul_project", N * P, matmul_project<Scalar>, params, w, step);
  }
  pass.launch_over("matmul_end_forward", N * H, matmul_end_forward<Scalar>, params, w);
}

template <typename Scalar, typename Cell>
void backward_by_matmul(const BackwardParams& params, const Run& run) {
  using Acc = AccOf<Scalar>;
  const int64_t H = params.shape.hidden_size, P = params.shape.state_size, GH = Cell::kGates * H;
  MatmulPass<Scalar, BackwardParams> pass("recurrence_backward", params, run);
  const int64_t N = pass.samples(), B = params.shape.batch;
  const int64_t columns = params.shape.directions * (Cell::kHasExtra ? Cell::kGates + 1 : Cell::kGates) * H;
  MatmulWorkspace w{};
  w.operand = pass.template take<Scalar>(N * GH);
  w.product = pass.template take<Acc>(N * P);
  w.h = pass.template take<Acc>(N * P);
  if (Cell::kHasCell) w.c = pass.template take<Acc>(N * H);
  w.bias = pass.template take<Acc>(B * columns);
  if (pass.projects()) {
    w.inner_operand = pass.template take<Scalar>(N * P);
    w.inner_product = pass.template take<Acc>(N * H);
  }
  const auto multiply = pass.products(w.operand, params.w_hh, /*transposed=*/false, w.product, P, GH);
  const auto project = pass.products(w.inner_operand, params.w_hr, /*transposed=*/false, w.inner_product, H, P);
  pass.clear(w.bias, B * columns * static_cast<int64_t>(sizeof(Acc)));
  for (int64_t step = params.shape.steps - 1; step >= 0; --step) {
    pass.launch_blocks("matmul_receive", N, matmul_receive<Scalar>, params, w, step);
    run_all(project);
    pass.launch_over("matmul_cell_backward", N * H, matmul_cell_backward<Scalar, Cell>, params, w, step);
    run_all(multiply);
  }
  pass.launch_over("matmul_end_backward", N * H, matmul_end_backward<Scalar>, params, w);
  if (!params.grad_bias) return;
  launch_sum_slices(pass.launch_of("sum_slices", 1), static_cast<Acc*>(params.grad_bias),
                    static_cast<const Acc*>(w.bias), columns, B);
}

template <typename Function>
void with_cell(CellKind cell, Function function) {
  switch (cell) {
    case CellKind::kLstm: return function.template operator()<LstmCell>();
    case CellKind::kGru: return function.template operator()<GruCell>();
    default: return function.template operator()<RnnCell>();
  }
}

template <typename Scalar>
void MatmulKernels<Scalar>::forward(const ForwardParams& params, const Run& run) {
  with_cell(params.shape.cell, [&]<typename Cell>() { forward_by_matmul<Scalar, Cell>(params, run); });
}

template <typename Scalar>
void MatmulKernels<Scalar>::backward(const BackwardParams& params, const Run& run) {
  with_cell(params.shape.cell, [&]<typename Cell>() { backward_by_matmul<Scalar, Cell>(params, run); });
}

}  // namespace fastrnn::cuda
