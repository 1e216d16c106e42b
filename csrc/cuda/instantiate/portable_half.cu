#include "../portable_launch.cuh"

template struct fastrnn::cuda::PortableKernels<__half>;
