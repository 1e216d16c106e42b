// Everything after this include is compiled for AVX-512. Include what must not be (standard headers, plain code) before.
#pragma once

#include <immintrin.h>

// prfchw: what is fetched to be written is then taken from other cores, which a store would wait for.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
// g++ before 13 does not set __FMA__ and its kin for the pragma.
#define FASTRNN_AVX512 1
#define FASTRNN_ISA avx512
#define FASTRNN_VECTOR_BYTES 64
