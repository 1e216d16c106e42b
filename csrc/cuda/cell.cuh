// The cells as kernels take them: RNN chooses its nonlinearity at run time.
#pragma once

#include "../cells.h"
#include "../params.h"

#include <intrinsics.cuh>

namespace fastrnn::cuda {

struct RnnCell {
  static constexpr int kGates = 1;
  static constexpr bool kHasCell = false, kHasExtra = false;
  bool relu;
  FASTRNN_DEVICE explicit RnnCell(CellKind kind) : relu(kind == CellKind::kRnnRelu) {}
  template <typename Acc, typename... Rest>
  FASTRNN_DEVICE State<Acc> forward(const Acc (&x)[1], Rest&&... rest) const {
    return relu ? RnnRelu::forward(x, rest...) : RnnTanh::forward(x, rest...);
  }
  template <typename Acc, typename... Rest>
  FASTRNN_DEVICE State<Acc> backward(State<Acc> grad, Rest&&... rest) const {
    return relu ? RnnRelu::backward(grad, rest...) : RnnTanh::backward(grad, rest...);
  }
};
struct LstmCell : Lstm {
  FASTRNN_DEVICE explicit LstmCell(CellKind) {}
};
struct GruCell : Gru {
  FASTRNN_DEVICE explicit GruCell(CellKind) {}
};

}  // namespace fastrnn::cuda
