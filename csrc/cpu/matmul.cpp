#include "matmul.h"

#include "isa.h"

namespace fastrnn::cpu {

#define FASTRNN_DECLARE_PRODUCTS(name)                                 \
  namespace name {                                                     \
  void matmul(const MatmulParams& params, int num_threads);            \
  void joint_matmul(const JointMatmulParams& params, int num_threads); \
  }
FASTRNN_DECLARE_PRODUCTS(portable)
#if defined(__x86_64__)
FASTRNN_DECLARE_PRODUCTS(avx2)
FASTRNN_DECLARE_PRODUCTS(avx512)
FASTRNN_DECLARE_PRODUCTS(avx512_bf16)
#endif

void matmul(const MatmulParams& params, int num_threads) {
  switch (isa_for(params.scalar)) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16: return avx512_bf16::matmul(params, num_threads);
    case Isa::kAvx512: return avx512::matmul(params, num_threads);
    case Isa::kAvx2: return avx2::matmul(params, num_threads);
#endif
    default: return portable::matmul(params, num_threads);
  }
}

void joint_matmul(const JointMatmulParams& params, int num_threads) {
  switch (isa_for(params.scalar)) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16: return avx512_bf16::joint_matmul(params, num_threads);
    case Isa::kAvx512: return avx512::joint_matmul(params, num_threads);
    case Isa::kAvx2: return avx2::joint_matmul(params, num_threads);
#endif
    default: return portable::joint_matmul(params, num_threads);
  }
}

}  // namespace fastrnn::cpu
