// Everything after this include is compiled for AVX2 and FMA. Include what must not be (standard headers, plain code) before.
#pragma once

#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
// g++ before 13 does not set __FMA__ and its kin for the pragma.
#define FASTRNN_AVX2 1
#define FASTRNN_ISA avx2
#define FASTRNN_VECTOR_BYTES 32
