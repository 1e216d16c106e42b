#include "../recurrence.cuh"

template struct fastrnn::cuda::Recurrence<fastrnn::cuda::Tensor<fastrnn::cuda::HalfNumber<__half>>,
                                          fastrnn::cuda::RnnCell>;
