// Factors of dropout on the CPU: 0, or 1 / (1 - p) for what is kept.
#pragma once

#include "../params.h"

namespace fastrnn::cpu {

struct DropoutParams {
  void* factors;
  int64_t size;
  ScalarKind scalar;
  double p;  // in [0, 1], of a factor to be 0
  uint64_t seed;
};

// Drawn by philox.h; what is drawn does not depend on `num_threads`.
void draw_dropout(const DropoutParams& params, int num_threads);

// The same, as an instruction set's code takes it.
struct Drawing {
  void* factors;
  int64_t bytes;     // of a factor: 2, 4 or 8
  uint64_t kept;     // a factor that is not 0: its bits are the first `bytes` of these
  uint64_t dropped;  // of the 2^32 numbers that are drawn, the smallest ones give a 0
  uint64_t seed;
};

constexpr int64_t kDrawnAtOnce = int64_t{1} << 15;  // by a thread

}  // namespace fastrnn::cpu
