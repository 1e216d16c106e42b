#include "../matmul_run.cuh"

template struct fastrnn::cuda::MatmulKernels<__nv_bfloat16>;
