#include "../recurrence.cuh"

template struct fastrnn::cuda::Recurrence<fastrnn::cuda::Fma<double>, fastrnn::cuda::LstmCell>;
