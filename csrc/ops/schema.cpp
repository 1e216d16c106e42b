// Defines the operators. Their kernels register themselves from cpu.cpp and from the CUDA library.
#include "schema.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastrnn, m) {
  m.def(fastrnn::kRecurrenceForwardSchema);
  m.def(fastrnn::kRecurrenceBackwardSchema);
  m.def(fastrnn::kLayerForwardSchema);
  m.def(fastrnn::kLayerBackwardSchema);
  m.def(fastrnn::kSumOfSquaresSchema);
  m.def(fastrnn::kClipSchema);
  m.def(fastrnn::kDropoutFactorsSchema);
  m.def(fastrnn::kDeviceLimitsSchema);
  m.def("cpu_isa() -> str");  // the instruction set that the CPU engine runs here
}
