// What the ways into the CPU engine share: torch's operators (cpu.cpp), and Python's functions (python.cpp).
#pragma once

#include "../cpu/dropout.h"
#include "../cpu/layer_params.h"

namespace fastrnn::ops {

// On as many threads as torch uses.
void run_layer(const cpu::LayerForwardParams& params);
void run_layer_backward(const cpu::LayerBackwardParams& params);
void draw_dropout(const cpu::DropoutParams& params);

}  // namespace fastrnn::ops
