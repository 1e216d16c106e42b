#include "../portable_launch.cuh"

template struct fastrnn::cuda::PortableKernels<float>;
