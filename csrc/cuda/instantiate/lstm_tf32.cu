#include "../recurrence.cuh"

template struct fastrnn::cuda::Recurrence<fastrnn::cuda::Tensor<fastrnn::cuda::Tf32Number>, fastrnn::cuda::LstmCell>;
