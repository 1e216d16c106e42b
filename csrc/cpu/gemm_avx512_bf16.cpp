#include "gemm_common.h"
#if defined(__x86_64__)
#include "isa_avx512_bf16.h"

#include "gemm.h"
#endif
