// The engine of the instruction set that runs.
#include "engine.h"

#include <unistd.h>

#include "isa.h"

namespace fastrnn::cpu {

#define FASTRNN_DECLARE_ENGINE(name)                                                           \
  namespace name {                                                                             \
  void forward(const LayerForwardParams& params, int num_threads, int64_t l2_bytes);           \
  int threads_of_forward(const LayerForwardParams& params, int num_threads, int64_t l2_bytes); \
  void recurrence_backward(const BackwardParams& params, int num_threads, int64_t l2_bytes);   \
  }
FASTRNN_DECLARE_ENGINE(portable)
#if defined(__x86_64__)
FASTRNN_DECLARE_ENGINE(avx2)
FASTRNN_DECLARE_ENGINE(avx512)
FASTRNN_DECLARE_ENGINE(avx512_bf16)
#endif

namespace {

struct Engine {
  void (*forward)(const LayerForwardParams&, int, int64_t);
  int (*threads_of_forward)(const LayerForwardParams&, int, int64_t);
  void (*backward)(const BackwardParams&, int, int64_t);
};

Engine engine_for(ScalarKind scalar) {
  switch (isa_for(scalar)) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
      return {avx512_bf16::forward, avx512_bf16::threads_of_forward, avx512_bf16::recurrence_backward};
    case Isa::kAvx512: return {avx512::forward, avx512::threads_of_forward, avx512::recurrence_backward};
    case Isa::kAvx2: return {avx2::forward, avx2::threads_of_forward, avx2::recurrence_backward};
#endif
    default: return {portable::forward, portable::threads_of_forward, portable::recurrence_backward};
  }
}

// Of one core. Unknown to some virtual machines.
int64_t l2_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0) return static_cast<int64_t>(size);
#endif
    return int64_t{512} * 1024;
  }();
  return bytes;
}

}  // namespace

void forward(const LayerForwardParams& params, int num_threads) {
  engine_for(params.shape.scalar).forward(params, num_threads, l2_bytes());
}

int threads_of_forward(const LayerForwardParams& params, int num_threads) {
  return engine_for(params.shape.scalar).threads_of_forward(params, num_threads, l2_bytes());
}

void recurrence_forward(const ForwardParams& params, int num_threads) { forward({params}, num_threads); }

void recurrence_backward(const BackwardParams& params, int num_threads) {
  engine_for(params.shape.scalar).backward(params, num_threads, l2_bytes());
}

const char* isa() { return isa_name(selected_isa()); }

}  // namespace fastrnn::cpu
