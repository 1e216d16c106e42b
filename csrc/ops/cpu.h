// What both ways into the CPU engine share: the operators (cpu.cpp) and whole modules (inference.cpp).
#pragma once

#include "../cpu/layer_params.h"

namespace fastrnn::ops {

// On as many threads as torch uses.
void run_layer(const cpu::LayerForwardParams& params);

}  // namespace fastrnn::ops
