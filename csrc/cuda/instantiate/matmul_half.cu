#include "../matmul_run.cuh"

template struct fastrnn::cuda::MatmulKernels<__half>;
