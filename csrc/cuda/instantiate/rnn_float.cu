#include "../recurrence.cuh"

template struct fastrnn::cuda::Recurrence<fastrnn::cuda::Fma<float>, fastrnn::cuda::RnnCell>;
