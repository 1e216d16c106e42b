// The recurrence for every shape, storage type and option, forward and backward, without any of what makes a kernel fast.
//
// One block runs one sample in one direction through the whole sequence. Threads own units: thread i has the units i,
// i + blockDim.x and so on, of h as of c. The carried state lies in shared memory; weights are read from global memory at
// every step. A barrier stands wherever a thread is about to read what others have written, or to overwrite what they read:
//   forward:  operand | product and cell | (projection)
//   backward: (norm) | (projection) | cell | product |
// Nothing depends on the number of threads but the order in which a norm is summed.
#pragma once

#include "../cells.h"
#include "../params.h"
#include "rows.cuh"
#include "storage.cuh"

namespace fastrnn::cuda {

constexpr int kPortableThreads = 256;

// Cuts named arrays out of shared memory; on the host, with no buffer, it only counts bytes.
class SharedArrays {
 public:
  __host__ __device__ explicit SharedArrays(unsigned char* buffer) : buffer_(buffer) {}

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* array = buffer_ ? reinterpret_cast<T*>(buffer_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 15) / 16 * 16;
    return array;
  }
  __host__ __device__ size_t used() const { return used_; }

 private:
  unsigned char* buffer_;
  size_t used_ = 0;
};

template <typename Acc>
struct PortableForwardShared {
  Acc* h;        // [P]  carried state
  Acc* operand;  // [P]  h_{t-1} as the product sees it: rounded to storage, times the mask
  Acc* c;        // [H]  carried cell state (LSTM)
  Acc* hidden;   // [H]  o tanh(c), rounded to storage (projection)

  __host__ __device__ PortableForwardShared(SharedArrays& arrays, const Shape& shape, bool has_cell, bool projects) {
    h = arrays.take<Acc>(shape.state_size);
    operand = arrays.take<Acc>(shape.state_size);
    c = arrays.take<Acc>(has_cell ? shape.hidden_size : 0);
    hidden = arrays.take<Acc>(projects ? shape.hidden_size : 0);
  }
};

template <typename Acc>
struct PortableBackwardShared {
  Acc* grad_h;      // [P]    r_t's part of h, then the gradient of h_t, then its part of h_{t-1}
  Acc* grad_c;      // [H]    likewise of c (LSTM)
  Acc* grad_gates;  // [G*H]  gradients of the recurrent pre-activations
  double* partial;  // [threads]

  __host__ __device__ PortableBackwardShared(SharedArrays& arrays, const Shape& shape, bool has_cell, int num_gates,
                                             int num_threads) {
    grad_h = arrays.take<Acc>(shape.state_size);
    grad_c = arrays.take<Acc>(has_cell ? shape.hidden_size : 0);
    grad_gates = arrays.take<Acc>(num_gates * shape.hidden_size);
    partial = arrays.take<double>(num_threads);
  }
};

template <typename T>
FASTRNN_DEVICE const T* at(const void* base, int64_t index) {
  return static_cast<const T*>(base) + index;
}
template <typename T>
FASTRNN_DEVICE T* at(void* base, int64_t index) {
  return static_cast<T*>(base) + index;
}

template <typename Scalar>
FASTRNN_DEVICE void fill_zeros(void* base, int64_t index, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) store(at<Scalar>(base, index + i), AccOf<Scalar>(0));
}

// Sum over the block, the same in every thread. blockDim.x is a power of two.
FASTRNN_DEVICE double block_sum(double value, double* partial) {
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = partial[0];
  __syncthreads();
  return sum;
}

// grid: (batch, directions)
template <typename Scalar, typename Cell>
__global__ void __launch_bounds__(kPortableThreads, 1) portable_forward(const ForwardParams p) {
  using Acc = AccOf<Scalar>;
  constexpr int G = Cell::kGates;
  FASTRNN_SMEM(buffer);
  const int64_t H = p.shape.hidden_size, P = p.shape.state_size, D = p.shape.directions;
  const int64_t b = blockIdx.x, d = blockIdx.y, sample = d * p.shape.batch + b;
  const Rows rows = Rows::of(p);
  const int64_t length = rows.length(b);
  const Scalar* w_hh = static_cast<const Scalar*>(p.w_hh[d]);
  const Scalar* w_hr = static_cast<const Scalar*>(p.w_hr[d]);
  const Acc* state_mask = p.mask && p.dropout_site == DropoutSite::kState ? at<Acc>(p.mask, sample * P) : nullptr;
  const Acc* candidate_mask =
      p.mask && p.dropout_site == DropoutSite::kCandidate ? at<Acc>(p.mask, sample * H) : nullptr;
  SharedArrays arrays(buffer);
  const PortableForwardShared<Acc> shared(arrays, p.shape, Cell::kHasCell, w_hr != nullptr);

  for (int64_t j = threadIdx.x; j < P; j += blockDim.x) shared.h[j] = load(at<Scalar>(p.h0, sample * P + j));
  if constexpr (Cell::kHasCell)
    for (int64_t j = threadIdx.x; j < H; j += blockDim.x) shared.c[j] = load(at<Scalar>(p.c0, sample * H + j));

  for (int64_t step = 0; step < length; ++step) {
    const int64_t row = rows.row(d == 0 ? step : length - 1 - step, b);
    for (int64_t k = threadIdx.x; k < P; k += blockDim.x) {
      const Acc h = rounded<Scalar>(shared.h[k]);
      shared.operand[k] = state_mask ? rounded<Scalar>(h * state_mask[k]) : h;
    }
    __syncthreads();

    for (int64_t j = threadIdx.x; j < H; j += blockDim.x) {
      const int64_t gates_at = ((d * p.shape.rows + row) * G) * H + j, unit_at = (d * p.shape.rows + row) * H + j;
      Acc x[G], r[G] = {}, gates[G], extra = 0;
      for (int g = 0; g < G; ++g) {
        x[g] = load(at<Scalar>(p.gates, gates_at + g * H));
        for (int64_t k = 0; k < P; ++k) r[g] += load(w_hh + (g * H + j) * P + k) * shared.operand[k];
      }
      if constexpr (Cell::kHasExtra)
        if (p.b_hn[d]) r[G - 1] += load(at<Scalar>(p.b_hn[d], j));
      State<Acc> prev{0, 0};
      if constexpr (Cell::kHasExtra) prev.h = shared.h[j];
      if constexpr (Cell::kHasCell) prev.c = shared.c[j];
      const Acc keep = candidate_mask ? candidate_mask[j] : Acc(1);
      const State<Acc> next = Cell::forward(x, r, prev, keep, gates, extra);
      if constexpr (Cell::kHasCell) shared.c[j] = next.c;
      if (w_hr) {
        shared.hidden[j] = rounded<Scalar>(next.h);
      } else {
        shared.h[j] = next.h;
        store(at<Scalar>(p.y, (row * D + d) * P + j), next.h);
      }
      if (!p.save) continue;
      if constexpr (G > 1)
        for (int g = 0; g < G; ++g) store(at<Scalar>(p.gates, gates_at + g * H), gates[g]);
      if constexpr (Cell::kHasCell) *at<Acc>(p.cells, unit_at) = next.c;
      if constexpr (Cell::kHasExtra) store(at<Scalar>(p.n_h, unit_at), extra);
      if (w_hr) store(at<Scalar>(p.hidden, unit_at), next.h);
    }
    __syncthreads();

    if (w_hr)
      for (int64_t j = threadIdx.x; j < P; j += blockDim.x) {
        Acc h = 0;
        for (int64_t k = 0; k < H; ++k) h += load(w_hr + j * H + k) * shared.hidden[k];
        shared.h[j] = h;
        store(at<Scalar>(p.y, (row * D + d) * P + j), h);
      }
  }

  for (int64_t j = threadIdx.x; j < P; j += blockDim.x) store(at<Scalar>(p.h_n, sample * P + j), shared.h[j]);
  if constexpr (Cell::kHasCell)
    for (int64_t j = threadIdx.x; j < H; j += blockDim.x) store(at<Scalar>(p.c_n, sample * H + j), shared.c[j]);
  if (p.offsets) return;
  for (int64_t t = length; t < p.shape.steps; ++t) {
    const int64_t row = rows.row(t, b);
    fill_zeros<Scalar>(p.y, (row * D + d) * P, P);
    // The weight gradient of the projection multiplies these rows with zeros, so they may not be NaN.
    if (p.save && w_hr) fill_zeros<Scalar>(p.hidden, (d * p.shape.rows + row) * H, H);
  }
}

// Records and clips r_t, the block's part of which is `shared`'s grad_h and grad_c.
template <typename Acc>
FASTRNN_DEVICE void record_and_clip(const BackwardParams& p, const PortableBackwardShared<Acc>& shared, bool has_cell,
                                    int64_t index) {
  const auto for_own = [&](auto visit) {
    for (int64_t j = threadIdx.x; j < p.shape.state_size; j += blockDim.x) visit(shared.grad_h[j]);
    if (has_cell)
      for (int64_t j = threadIdx.x; j < p.shape.hidden_size; j += blockDim.x) visit(shared.grad_c[j]);
  };
  const double scale = p.grad_scale ? *p.grad_scale : 1.0;
  bool clipped = false;
  if (p.norms || p.clip_mode == ClipMode::kNorm) {
    // Squares in double: exact range for float's smallest and largest values.
    double squares = 0;
    for_own([&](Acc& x) { squares += static_cast<double>(x) * x; });
    const double norm = sqrt(block_sum(squares, shared.partial)) / scale;
    if (p.norms && threadIdx.x == 0) *at<Acc>(p.norms, index) = static_cast<Acc>(norm);
    // False for a norm that is not finite.
    clipped = p.clip_mode == ClipMode::kNorm && norm > p.clip_threshold && norm * 0 == 0;
    const Acc factor = static_cast<Acc>(p.clip_threshold / norm);
    if (clipped) for_own([&](Acc& x) { x *= factor; });
  }
  if (p.clip_mode == ClipMode::kValue) {
    const Acc limit = static_cast<Acc>(p.clip_threshold * scale);
    double count = 0;
    for_own([&](Acc& x) {
      if (x > limit || x < -limit) {
        x = x > 0 ? limit : -limit;
        ++count;
      }
    });
    if (p.clipped) clipped = block_sum(count, shared.partial) > 0;
  }
  if (p.clipped && threadIdx.x == 0) p.clipped[index] = clipped;
}

// grid: (batch, directions)
template <typename Scalar, typename Cell>
__global__ void __launch_bounds__(kPortableThreads, 1) portable_backward(const BackwardParams p) {
  using Acc = AccOf<Scalar>;
  constexpr int G = Cell::kGates;
  FASTRNN_SMEM(buffer);
  const int64_t H = p.shape.hidden_size, P = p.shape.state_size, D = p.shape.directions;
  const int64_t b = blockIdx.x, d = blockIdx.y, sample = d * p.shape.batch + b;
  const Rows rows = Rows::of(p);
  const int64_t length = rows.length(b);
  const Scalar* w_hh = static_cast<const Scalar*>(p.w_hh[d]);
  const Scalar* w_hr = static_cast<const Scalar*>(p.w_hr[d]);
  const Acc* state_mask = p.mask && p.dropout_site == DropoutSite::kState ? at<Acc>(p.mask, sample * P) : nullptr;
  const Acc* candidate_mask =
      p.mask && p.dropout_site == DropoutSite::kCandidate ? at<Acc>(p.mask, sample * H) : nullptr;
  SharedArrays arrays(buffer);
  const PortableBackwardShared<Acc> shared(arrays, p.shape, Cell::kHasCell, G, blockDim.x);

  for (int64_t j = threadIdx.x; j < P; j += blockDim.x)
    shared.grad_h[j] = p.grad_h_n ? load(at<Scalar>(p.grad_h_n, sample * P + j)) : Acc(0);
  if constexpr (Cell::kHasCell)
    for (int64_t j = threadIdx.x; j < H; j += blockDim.x)
      shared.grad_c[j] = p.grad_c_n ? load(at<Scalar>(p.grad_c_n, sample * H + j)) : Acc(0);

  for (int64_t step = length - 1; step >= 0; --step) {
    const int64_t t = d == 0 ? step : length - 1 - step;
    const int64_t row = rows.row(t, b), row_prev = step == 0 ? 0 : rows.row(d == 0 ? t - 1 : t + 1, b);
    const auto h_prev = [&](int64_t j) {
      return load(step == 0 ? at<Scalar>(p.h0, sample * P + j) : at<Scalar>(p.y, (row_prev * D + d) * P + j));
    };
    record_and_clip<Acc>(p, shared, Cell::kHasCell, (d * p.shape.steps + t) * p.shape.batch + b);

    for (int64_t j = threadIdx.x; j < P; j += blockDim.x) {
      if (p.grad_y) shared.grad_h[j] += load(at<Scalar>(p.grad_y, (row * D + d) * P + j));
      if (w_hr) store(at<Scalar>(p.grad_h, (d * p.shape.rows + row) * P + j), shared.grad_h[j]);
    }
    if (w_hr) __syncthreads();

    for (int64_t j = threadIdx.x; j < H; j += blockDim.x) {
      const int64_t gates_at = ((d * p.shape.rows + row) * G) * H + j, unit_at = (d * p.shape.rows + row) * H + j;
      State<Acc> grad{0, 0}, prev{0, 0}, next{0, 0};
      if (w_hr) {
        for (int64_t k = 0; k < P; ++k) grad.h += load(w_hr + k * H + j) * shared.grad_h[k];
      } else {
        grad.h = shared.grad_h[j];
      }
      Acc gates[G] = {}, extra = 0, grad_x[G], grad_r[G];
      if constexpr (G > 1)
        for (int g = 0; g < G; ++g) gates[g] = load(at<Scalar>(p.gates, gates_at + g * H));
      if constexpr (Cell::kHasCell) {
        grad.c = shared.grad_c[j];
        next.c = *at<Acc>(p.cells, unit_at);
        prev.c = step == 0 ? load(at<Scalar>(p.c0, sample * H + j))
                           : *at<Acc>(p.cells, (d * p.shape.rows + row_prev) * H + j);
      } else {
        prev.h = h_prev(j);
        next.h = load(at<Scalar>(p.y, (row * D + d) * P + j));
      }
      if constexpr (Cell::kHasExtra) extra = load(at<Scalar>(p.n_h, unit_at));
      const Acc keep = candidate_mask ? candidate_mask[j] : Acc(1);
      const State<Acc> direct = Cell::backward(grad, gates, extra, prev, next, keep, grad_x, grad_r);
      if (!w_hr) shared.grad_h[j] = direct.h;
      if constexpr (Cell::kHasCell) shared.grad_c[j] = direct.c;
      for (int g = 0; g < G; ++g) {
        shared.grad_gates[g * H + j] = grad_r[g];
        store(at<Scalar>(p.grad_gates, gates_at + g * H), grad_x[g]);
      }
      if constexpr (Cell::kHasExtra) store(at<Scalar>(p.grad_n_h, unit_at), grad_r[G - 1]);
    }
    __syncthreads();

    for (int64_t k = threadIdx.x; k < P; k += blockDim.x) {
      Acc sum = 0;
      for (int64_t i = 0; i < G * H; ++i) sum += load(w_hh + i * P + k) * shared.grad_gates[i];
      if (state_mask) sum *= state_mask[k];
      shared.grad_h[k] = w_hr ? sum : shared.grad_h[k] + sum;
      if (p.h_prev)
        store(at<Scalar>(p.h_prev, (d * p.shape.rows + row) * P + k),
              state_mask ? h_prev(k) * state_mask[k] : h_prev(k));
    }
    __syncthreads();
  }

  for (int64_t j = threadIdx.x; j < P; j += blockDim.x) store(at<Scalar>(p.grad_h0, sample * P + j), shared.grad_h[j]);
  if constexpr (Cell::kHasCell)
    for (int64_t j = threadIdx.x; j < H; j += blockDim.x)
      store(at<Scalar>(p.grad_c0, sample * H + j), shared.grad_c[j]);
  for (int64_t t = length + threadIdx.x; t < p.shape.steps; t += blockDim.x) {
    const int64_t index = (d * p.shape.steps + t) * p.shape.batch + b;
    if (p.norms) *at<Acc>(p.norms, index) = 0;
    if (p.clipped) p.clipped[index] = false;
  }
  if (p.offsets) return;
  for (int64_t t = length; t < p.shape.steps; ++t) {
    const int64_t row = d * p.shape.rows + rows.row(t, b);
    fill_zeros<Scalar>(p.grad_gates, row * G * H, G * H);
    if constexpr (Cell::kHasExtra) fill_zeros<Scalar>(p.grad_n_h, row * H, H);
    if (w_hr) fill_zeros<Scalar>(p.grad_h, row * P, P);
    if (p.h_prev) fill_zeros<Scalar>(p.h_prev, row * P, P);
  }
}

// grad_bias from the stored grad_gates and grad_n_h: one thread per column, rows in order, so that two runs are equal to
// the bit. grid: (blocks over columns, directions)
template <typename Scalar, typename Cell>
__global__ void __launch_bounds__(kPortableThreads, 1) portable_grad_bias(const BackwardParams p) {
  constexpr int G = Cell::kGates;
  const int64_t H = p.shape.hidden_size, num_columns = (Cell::kHasExtra ? G + 1 : G) * H, d = blockIdx.y;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= num_columns) return;
  const bool of_gates = column < G * H;
  const int64_t width = of_gates ? G * H : H;
  const Scalar* first = of_gates ? at<Scalar>(p.grad_gates, d * p.shape.rows * width + column)
                                 : at<Scalar>(p.grad_n_h, d * p.shape.rows * width + column - G * H);
  double sum = 0;
  for (int64_t row = 0; row < p.shape.rows; ++row) sum += load(first + row * width);
  *at<AccOf<Scalar>>(p.grad_bias, d * num_columns + column) = static_cast<AccOf<Scalar>>(sum);
}

}  // namespace fastrnn::cuda
