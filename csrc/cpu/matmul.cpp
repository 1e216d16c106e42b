#include "matmul.h"

#include "isa.h"

namespace fastrnn::cpu {

namespace portable {
void matmul(const MatmulParams& params, int num_threads);
}
#if defined(__x86_64__)
namespace avx2 {
void matmul(const MatmulParams& params, int num_threads);
}
namespace avx512 {
void matmul(const MatmulParams& params, int num_threads);
}
namespace avx512_bf16 {
void matmul(const MatmulParams& params, int num_threads);
}
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

}  // namespace fastrnn::cpu
