#include "dropout.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "scalars.h"

namespace fastrnn::cpu {

#define FASTRNN_DECLARE_DRAW(name)                                        \
  namespace name {                                                        \
  void draw_factors(const Drawing& drawing, int64_t first, int64_t last); \
  }
FASTRNN_DECLARE_DRAW(portable)
#if defined(__x86_64__)
FASTRNN_DECLARE_DRAW(avx2)
FASTRNN_DECLARE_DRAW(avx512)
#endif

namespace {

auto draw_function() {
  switch (selected_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
    case Isa::kAvx512: return avx512::draw_factors;
    case Isa::kAvx2: return avx2::draw_factors;
#endif
    default: return portable::draw_factors;
  }
}

}  // namespace

void draw_dropout(const DropoutParams& params, int num_threads) {
  Drawing drawing{params.factors, bytes_of(params.scalar), 0, static_cast<uint64_t>(std::llrint(params.p * 0x1p32)),
                  params.seed};
  if (params.p < 1) write_scalar(1 / (1 - params.p), &drawing.kept, params.scalar);
  const auto draw_factors = draw_function();
  const int64_t parts = (params.size + kDrawnAtOnce - 1) / kDrawnAtOnce;
  const int team = static_cast<int>(std::clamp<int64_t>(parts, 1, std::max(num_threads, 1)));
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * kDrawnAtOnce;
    draw_factors(drawing, first, std::min(first + kDrawnAtOnce, params.size));
  }
}

}  // namespace fastrnn::cpu
