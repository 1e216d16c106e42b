// Storage types of the CUDA kernels, and the type each is computed in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include <intrinsics.cuh>

namespace fastrnn::cuda {

template <typename Scalar>
using AccOf = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;

FASTRNN_DEVICE float load(const float* p) { return *p; }
FASTRNN_DEVICE double load(const double* p) { return *p; }
FASTRNN_DEVICE float load(const __half* p) { return __half2float(*p); }
FASTRNN_DEVICE float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }

FASTRNN_DEVICE void store(float* p, float x) { *p = x; }
FASTRNN_DEVICE void store(double* p, double x) { *p = x; }
FASTRNN_DEVICE void store(__half* p, float x) { *p = __float2half_rn(x); }
FASTRNN_DEVICE void store(__nv_bfloat16* p, float x) { *p = __float2bfloat16_rn(x); }

template <typename T>
FASTRNN_DEVICE const T* at(const void* base, int64_t index) {
  return static_cast<const T*>(base) + index;
}
template <typename T>
FASTRNN_DEVICE T* at(void* base, int64_t index) {
  return static_cast<T*>(base) + index;
}

// x as it reads back once it was stored.
template <typename Scalar>
FASTRNN_DEVICE AccOf<Scalar> rounded(AccOf<Scalar> x) {
  Scalar stored;
  store(&stored, x);
  return load(&stored);
}

// The same of two at once, which takes one instruction where each by itself may take a slow one.
template <typename Scalar>
FASTRNN_DEVICE void round_pair(AccOf<Scalar> (&x)[2]) {
  if constexpr (std::is_same_v<Scalar, __nv_bfloat16>) {
    const float2 stored = __bfloat1622float2(__floats2bfloat162_rn(x[0], x[1]));
    x[0] = stored.x, x[1] = stored.y;
  } else if constexpr (std::is_same_v<Scalar, __half>) {
    const float2 stored = __half22float2(__floats2half2_rn(x[0], x[1]));
    x[0] = stored.x, x[1] = stored.y;
  }
}

}  // namespace fastrnn::cuda
