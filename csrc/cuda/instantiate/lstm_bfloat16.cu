#include "../recurrence.cuh"

template struct fastrnn::cuda::Recurrence<fastrnn::cuda::Tensor<fastrnn::cuda::HalfNumber<__nv_bfloat16>>,
                                          fastrnn::cuda::LstmCell>;
