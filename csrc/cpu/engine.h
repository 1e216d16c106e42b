// The CPU recurrence engine: a whole RNN, LSTM or GRU sequence in one call, forward and backward, on params.h's structs.
// One source, compiled for each instruction set; which one runs is decided when the first call comes.
#pragma once

#include "layer_params.h"
#include "split.h"

namespace fastrnn::cpu {

// `num_threads`: the most threads to use, at least 1 (torch.get_num_threads()).
void recurrence_forward(const ForwardParams& params, int num_threads);
void recurrence_backward(const BackwardParams& params, int num_threads);

// A layer: the recurrence with the input projection and the products of its gradients.
void layer_forward(const LayerForwardParams& params, int num_threads);
void layer_backward(const LayerBackwardParams& params, int num_threads);

// What a layer is made of: the recurrence, which multiplies its input by itself where that is given, and the gradient of it where
// that is asked for.
void forward(const LayerForwardParams& params, int num_threads);
void backward(const LayerBackwardParams& params, int num_threads);
// How they would use the threads.
Split split_of_forward(const Shape& shape, int num_threads);
Split split_of_backward(const Shape& shape, int num_threads);

// "avx512_bf16", "avx512", "avx2" or "portable": the best that this CPU runs, or what the environment variable FASTRNN_CPU_ISA
// asks for. Throws std::runtime_error, naming what the CPU has, where the variable asks for what it cannot run.
const char* isa();

}  // namespace fastrnn::cpu
