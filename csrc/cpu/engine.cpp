// The engine of the instruction set that runs.
#include "engine.h"

#include <unistd.h>

#include "isa.h"

namespace fastrnn::cpu {

#define FASTRNN_DECLARE_ENGINE(name)                                                   \
  namespace name {                                                                     \
  void forward(const LayerForwardParams& params, int num_threads, int64_t l2_bytes);   \
  Split split_of_forward(const Shape& shape, int num_threads, int64_t l2_bytes);       \
  Split split_of_backward(const Shape& shape, int num_threads, int64_t l2_bytes);      \
  void backward(const LayerBackwardParams& params, int num_threads, int64_t l2_bytes); \
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
  Split (*split_of_forward)(const Shape&, int, int64_t);
  Split (*split_of_backward)(const Shape&, int, int64_t);
  void (*backward)(const LayerBackwardParams&, int, int64_t);
};

#define FASTRNN_ENGINE(name) {name::forward, name::split_of_forward, name::split_of_backward, name::backward}

Engine engine_for(ScalarKind scalar) {
  switch (isa_for(scalar)) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16: return FASTRNN_ENGINE(avx512_bf16);
    case Isa::kAvx512: return FASTRNN_ENGINE(avx512);
    case Isa::kAvx2: return FASTRNN_ENGINE(avx2);
#endif
    default: return FASTRNN_ENGINE(portable);
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

Split split_of_forward(const Shape& shape, int num_threads) {
  return engine_for(shape.scalar).split_of_forward(shape, num_threads, l2_bytes());
}

void backward(const LayerBackwardParams& params, int num_threads) {
  engine_for(params.shape.scalar).backward(params, num_threads, l2_bytes());
}

Split split_of_backward(const Shape& shape, int num_threads) {
  return engine_for(shape.scalar).split_of_backward(shape, num_threads, l2_bytes());
}

void recurrence_forward(const ForwardParams& params, int num_threads) { forward({params}, num_threads); }

void recurrence_backward(const BackwardParams& params, int num_threads) { backward({params}, num_threads); }

const char* isa() { return isa_name(selected_isa()); }

}  // namespace fastrnn::cpu
