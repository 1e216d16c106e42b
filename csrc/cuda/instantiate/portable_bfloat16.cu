#include "../portable_launch.cuh"

template struct fastrnn::cuda::PortableKernels<__nv_bfloat16>;
