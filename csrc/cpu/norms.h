// Over many tensors at once: their sum of squares, and their scaling. One parallel region each.
#pragma once

#include <cstdint>
#include <vector>

#include "../params.h"

namespace fastrnn::cpu {

struct Span {
  void* data;
  int64_t size;
  ScalarKind scalar;
};

// Squares are summed in double, in an order that does not depend on `num_threads`: right where float squares would be 0 or inf.
double sum_of_squares(const std::vector<Span>& spans, int num_threads);

// Every element times `factor`, rounded once. The caller skips a factor of 1.
void scale(const std::vector<Span>& spans, double factor, int num_threads);

}  // namespace fastrnn::cpu
