// The maths of every cell, forward and backward, written once for host and device.
//
// Values in registers in, values in registers out: no pointers, no storage types. `Acc` is float, double, or a vector of
// either whose operators and `sigmoid`, `tanh`, `relu`, `positive` are found by argument lookup (cpu/simd.h), so the same
// text is the scalar, the vectorised and the CUDA cell.
//
//   forward:  x     input side of the pre-activations, biases included; `AddedToR` where r contains it
//             r     recurrent product (GRU: r[2] carries b_hn, since the reset is applied after the product)
//             keep  dropout factor of the candidate, 1 when that dropout is off
//             gates what backward needs of the gates, written over x's place in memory
//             extra GRU: the candidate's recurrent pre-activation r[2]; others leave it alone
//   backward: grad  gradient of h_t and c_t; the return value is the part of the gradient of h_{t-1}, c_{t-1} that does not
//                   go through the recurrent product
//             grad_x, grad_r  gradients of the pre-activations on the input and on the recurrent side
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD inline __attribute__((always_inline))
#endif

namespace fastrnn {

template <typename Acc>
struct State {
  Acc h;
  Acc c;  // LSTM alone
};

struct AddedToR {};
template <typename Acc>
FASTRNN_HD Acc operator+(AddedToR, const Acc& r) {
  return r;
}

#if defined(__CUDACC__)
namespace cuda {  // intrinsics.cuh
__device__ __forceinline__ float approximate_exp2(float x);
__device__ __forceinline__ float approximate_reciprocal(float x);
}  // namespace cuda
#endif

// On the device without what expf and a division do for arguments that do not occur here: off by less than 2^-22, and by less than
// (4 + |x|) 2^-23 of the result, which is 0 where it would be below 2^-126.
FASTRNN_HD float sigmoid(float x) {
#if defined(__CUDA_ARCH__)
  constexpr float kLog2OfE = 1.4426950408889634f;
  return cuda::approximate_reciprocal(1.0f + cuda::approximate_exp2(x * -kLog2OfE));
#else
  return 1.0f / (1.0f + expf(-x));
#endif
}
FASTRNN_HD double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
FASTRNN_HD float tanh(float x) { return ::tanhf(x); }
FASTRNN_HD double tanh(double x) { return ::tanh(x); }
// Written so that NaN passes, as torch.relu does.
FASTRNN_HD float relu(float x) { return x < 0.0f ? 0.0f : x; }
FASTRNN_HD double relu(double x) { return x < 0.0 ? 0.0 : x; }
// `value` where x > 0, else 0.
FASTRNN_HD float positive(float x, float value) { return x > 0.0f ? value : 0.0f; }
FASTRNN_HD double positive(double x, double value) { return x > 0.0 ? value : 0.0; }

// h = tanh(x + r)
struct RnnTanh {
  static constexpr int kGates = 1;
  static constexpr bool kHasCell = false;   // carries c
  static constexpr bool kHasExtra = false;  // saves `extra`

  template <typename X, typename Acc>
  FASTRNN_HD static State<Acc> forward(const X (&x)[1], const Acc (&r)[1], State<Acc>, Acc, Acc (&)[1], Acc&) {
    return {tanh(x[0] + r[0]), Acc(0)};
  }
  template <typename Acc>
  FASTRNN_HD static State<Acc> backward(State<Acc> grad, const Acc (&)[1], Acc, State<Acc>, State<Acc> next, Acc,
                                        Acc (&grad_x)[1], Acc (&grad_r)[1]) {
    grad_x[0] = grad_r[0] = grad.h * (Acc(1) - next.h * next.h);
    return {Acc(0), Acc(0)};
  }
};

// h = max(x + r, 0)
struct RnnRelu {
  static constexpr int kGates = 1;
  static constexpr bool kHasCell = false;
  static constexpr bool kHasExtra = false;

  template <typename X, typename Acc>
  FASTRNN_HD static State<Acc> forward(const X (&x)[1], const Acc (&r)[1], State<Acc>, Acc, Acc (&)[1], Acc&) {
    return {relu(x[0] + r[0]), Acc(0)};
  }
  template <typename Acc>
  FASTRNN_HD static State<Acc> backward(State<Acc> grad, const Acc (&)[1], Acc, State<Acc>, State<Acc> next, Acc,
                                        Acc (&grad_x)[1], Acc (&grad_r)[1]) {
    grad_x[0] = grad_r[0] = positive(next.h, grad.h);
    return {Acc(0), Acc(0)};
  }
};

// Gates i, f, g, o as torch.nn.LSTM orders them:  c = f c_{t-1} + i (keep g),  h = o tanh(c)
struct Lstm {
  static constexpr int kGates = 4;
  static constexpr bool kHasCell = true;
  static constexpr bool kHasExtra = false;

  // forward in two parts, the second of which may wait until all c are there.
  template <typename X, typename Acc>
  FASTRNN_HD static Acc next_c(const X (&x)[4], const Acc (&r)[4], Acc prev_c, Acc keep, Acc (&gates)[4]) {
    gates[0] = sigmoid(x[0] + r[0]);
    gates[1] = sigmoid(x[1] + r[1]);
    gates[2] = tanh(x[2] + r[2]);
    gates[3] = sigmoid(x[3] + r[3]);
    return gates[1] * prev_c + gates[0] * (keep * gates[2]);
  }
  template <typename Acc>
  FASTRNN_HD static Acc next_h(const Acc& output_gate, const Acc& c) {
    return output_gate * tanh(c);
  }
  template <typename X, typename Acc>
  FASTRNN_HD static State<Acc> forward(const X (&x)[4], const Acc (&r)[4], State<Acc> prev, Acc keep, Acc (&gates)[4],
                                       Acc&) {
    const Acc c = next_c(x, r, prev.c, keep, gates);
    return {next_h(gates[3], c), c};
  }
  template <typename Acc>
  FASTRNN_HD static State<Acc> backward(State<Acc> grad, const Acc (&gates)[4], Acc, State<Acc> prev, State<Acc> next,
                                        Acc keep, Acc (&grad_x)[4], Acc (&grad_r)[4]) {
    const Acc i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const Acc tanh_c = tanh(next.c);
    const Acc grad_c = grad.c + grad.h * o * (Acc(1) - tanh_c * tanh_c);
    grad_x[0] = grad_r[0] = grad_c * (keep * g) * i * (Acc(1) - i);
    grad_x[1] = grad_r[1] = grad_c * prev.c * f * (Acc(1) - f);
    grad_x[2] = grad_r[2] = grad_c * i * keep * (Acc(1) - g * g);
    grad_x[3] = grad_r[3] = grad.h * tanh_c * o * (Acc(1) - o);
    return {Acc(0), grad_c * f};
  }
};

// Gates r, z, n as torch.nn.GRU orders them, reset after the product:
//   n = tanh(x_n + r (W_hn h + b_hn)),  h = (1 - z) (keep n) + z h_{t-1}
struct Gru {
  static constexpr int kGates = 3;
  static constexpr bool kHasCell = false;
  static constexpr bool kHasExtra = true;

  template <typename Acc>
  FASTRNN_HD static State<Acc> forward(const Acc (&x)[3], const Acc (&r)[3], State<Acc> prev, Acc keep, Acc (&gates)[3],
                                       Acc& extra) {
    gates[0] = sigmoid(x[0] + r[0]);
    gates[1] = sigmoid(x[1] + r[1]);
    extra = r[2];
    gates[2] = tanh(x[2] + gates[0] * extra);
    const Acc candidate = keep * gates[2];
    return {candidate + gates[1] * (prev.h - candidate), Acc(0)};
  }
  template <typename Acc>
  FASTRNN_HD static State<Acc> backward(State<Acc> grad, const Acc (&gates)[3], Acc extra, State<Acc> prev, State<Acc>,
                                        Acc keep, Acc (&grad_x)[3], Acc (&grad_r)[3]) {
    const Acc r = gates[0], z = gates[1], n = gates[2];
    const Acc grad_n = grad.h * (Acc(1) - z) * keep * (Acc(1) - n * n);
    grad_x[0] = grad_r[0] = grad_n * extra * r * (Acc(1) - r);
    grad_x[1] = grad_r[1] = grad.h * (prev.h - keep * n) * z * (Acc(1) - z);
    grad_x[2] = grad_n;
    grad_r[2] = grad_n * r;
    return {grad.h * z, Acc(0)};
  }
};

}  // namespace fastrnn
