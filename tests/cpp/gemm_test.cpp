// Compares fastrnn::cpu::matmul and joint_matmul with sums in double over random shapes, layouts and types. Built and run by
// tests/test_gemm.py.
//
//   gemm_test CACHES SEED CASES      CACHES: "tiny" cuts even small products into many blocks, "usual" into few
//
// Prints a line for each wrong product and exits with 1 if there is one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/cpu/cache.h"
#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/matmul.h"
#include "../../csrc/cpu/storage.h"

using namespace fastrnn;
using fastrnn::cpu::Bfloat16;
using fastrnn::cpu::Half;

namespace {

bool tiny_caches;
int failures;
std::mt19937 random_bits;

int64_t pick(int64_t first, int64_t last) { return std::uniform_int_distribution<int64_t>(first, last)(random_bits); }

// Conversions by value, not by bits, to be independent of the ones under test.
template <typename Scalar>
struct Format;
template <>
struct Format<float> {
  static constexpr ScalarKind kind = ScalarKind::kFloat;
  static constexpr double eps = 0x1p-24, sum_eps = 0x1p-24, least = 0x1p-149;
};
template <>
struct Format<double> {
  static constexpr ScalarKind kind = ScalarKind::kDouble;
  static constexpr double eps = 0x1p-53, sum_eps = 0x1p-53, least = 0;
};
template <>
struct Format<Half> {
  static constexpr ScalarKind kind = ScalarKind::kHalf;
  static constexpr double eps = 0x1p-11, sum_eps = 0x1p-24, least = 0x1p-25;
  static constexpr int exponent_bits = 5, fraction_bits = 10;
};
template <>
struct Format<Bfloat16> {
  static constexpr ScalarKind kind = ScalarKind::kBfloat16;
  static constexpr double eps = 0x1p-8, sum_eps = 0x1p-24, least = 0x1p-134;
  static constexpr int exponent_bits = 8, fraction_bits = 7;
};

double value(float x) { return x; }
double value(double x) { return x; }
template <typename Scalar>
double value(Scalar x) {
  using F = Format<Scalar>;
  const int bias = (1 << (F::exponent_bits - 1)) - 1, top = (1 << F::exponent_bits) - 1;
  const int exponent = x.bits >> F::fraction_bits & top, fraction = x.bits & ((1 << F::fraction_bits) - 1);
  double magnitude = std::ldexp(fraction + (exponent ? 1 << F::fraction_bits : 0),
                                (exponent ? exponent : 1) - bias - F::fraction_bits);
  if (exponent == top) magnitude = fraction ? std::nan("") : std::numeric_limits<double>::infinity();
  return x.bits >> 15 ? -magnitude : magnitude;
}

template <typename Scalar>
Scalar from_bits(uint16_t bits) {
  Scalar x;
  if constexpr (sizeof(Scalar) == 2)
    x.bits = bits;
  else
    x = static_cast<Scalar>(bits);
  return x;
}

// About normal, of any sign; 16-bit types by their bits, with exponents around 1.
template <typename Scalar>
Scalar random_value() {
  if constexpr (sizeof(Scalar) > 2) {
    return static_cast<Scalar>(std::normal_distribution<double>()(random_bits));
  } else {
    using F = Format<Scalar>;
    const int one = (1 << (F::exponent_bits - 1)) - 1;
    return from_bits<Scalar>(static_cast<uint16_t>(pick(0, 1) << 15 | pick(one - 4, one + 1) << F::fraction_bits |
                                                   pick(0, (1 << F::fraction_bits) - 1)));
  }
}

template <typename Scalar>
Scalar not_a_number() {
  if constexpr (sizeof(Scalar) > 2) return std::numeric_limits<Scalar>::quiet_NaN();
  return from_bits<Scalar>(0x7fff);
}

template <typename Scalar>
Scalar infinity() {
  using F = Format<Scalar>;
  if constexpr (sizeof(Scalar) > 2)
    return std::numeric_limits<Scalar>::infinity();
  else
    return from_bits<Scalar>(static_cast<uint16_t>(((1 << F::exponent_bits) - 1) << F::fraction_bits));
}

// A matrix in memory of exactly its extent (so that AddressSanitizer sees every step outside), NaN between its rows.
template <typename Scalar>
struct Matrix {
  int64_t rows, columns, row_step, column_step, offset;
  std::vector<Scalar> memory;

  Matrix(int64_t rows, int64_t columns, bool by_rows, int64_t extra)
      : rows(rows), columns(columns), offset(pick(0, 5)) {
    row_step = by_rows ? columns + extra : 1;
    column_step = by_rows ? 1 : rows + extra;
    memory.assign(offset + (rows && columns ? (rows - 1) * row_step + (columns - 1) * column_step + 1 : 0),
                  not_a_number<Scalar>());
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) at(i, j) = random_value<Scalar>();
  }
  Scalar& at(int64_t i, int64_t j) { return memory[offset + i * row_step + j * column_step]; }
  Scalar* data() { return memory.data() + offset; }
};

struct Case {
  int64_t m, n, k;
  bool a_by_rows, b_by_rows, accumulate;
  int num_biases, num_threads;
  int64_t extra;
};

template <typename Scalar>
void fail(const Case& c, const char* what) {
  ++failures;
  std::printf("%s scalar %d: m %ld n %ld k %ld a %s b %s accumulate %d biases %d threads %d extra %ld: %s\n",
              cpu::isa_name(cpu::selected_isa()), static_cast<int>(Format<Scalar>::kind), static_cast<long>(c.m),
              static_cast<long>(c.n), static_cast<long>(c.k), c.a_by_rows ? "rows" : "columns",
              c.b_by_rows ? "rows" : "columns", c.accumulate, c.num_biases, c.num_threads, static_cast<long>(c.extra),
              what);
}

template <typename Scalar>
bool same_bits(const std::vector<Scalar>& x, const std::vector<Scalar>& y) {
  return x.size() == y.size() && (x.empty() || !std::memcmp(x.data(), y.data(), x.size() * sizeof(Scalar)));
}

// |error| <= (k + 4) sum_eps (sum |a b| + |out| + |biases|) + eps |result|: the bound of a sum of k products in any order, in the
// accumulator's precision, and one rounding to storage.
template <typename Scalar>
void check(const Case& c) {
  using F = Format<Scalar>;
  Matrix<Scalar> a(c.m, c.k, c.a_by_rows, c.extra), b(c.k, c.n, c.b_by_rows, c.extra), out(c.m, c.n, true, c.extra);
  Matrix<Scalar> bias0(1, c.n, true, 0), bias1(1, c.n, true, 0);
  // Each stays in its row, the last step of k among others.
  if (pick(0, 9) == 0 && c.m && c.k) a.at(pick(0, c.m - 1), pick(0, c.k - 1)) = not_a_number<Scalar>();
  if (pick(0, 9) == 0 && c.m && c.k) a.at(pick(0, c.m - 1), c.k - 1) = infinity<Scalar>();
  cpu::MatmulParams p{};
  p.m = c.m, p.n = c.n, p.k = c.k;
  p.a = a.data(), p.a_row = a.row_step, p.a_col = a.column_step;
  p.b = b.data(), p.b_row = b.row_step, p.b_col = b.column_step;
  p.bias[0] = c.num_biases > 0 ? bias0.data() : nullptr;
  p.bias[1] = c.num_biases > 1 ? bias1.data() : nullptr;
  p.out = out.data(), p.out_row = out.row_step;
  p.accumulate = c.accumulate;
  p.scalar = F::kind;
  const Matrix<Scalar> before = out;
  if (!c.accumulate)  // what the output holds must not matter
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j) out.at(i, j) = not_a_number<Scalar>();
  double squares = 1, squares_again = 1;  // the sum is added to what is there
  p.squares = &squares;
  cpu::matmul(p, c.num_threads);

  Matrix<Scalar> again = before;
  p.out = again.data();
  p.squares = &squares_again;
  cpu::matmul(p, c.num_threads % 3 + 1);
  if (!same_bits(out.memory, again.memory) || std::memcmp(&squares, &squares_again, sizeof squares))
    fail<Scalar>(c, "another run, with another number of threads, differs");

  double sum_of_squares = 1;
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) sum_of_squares += value(out.at(i, j)) * value(out.at(i, j));
  if (std::isnan(sum_of_squares) ? !std::isnan(squares) : std::fabs(squares - sum_of_squares) > 1e-12 * sum_of_squares)
    fail<Scalar>(c, "the sum of squares is wrong");

  // Element (i, k) of a and (k, j) of b, each with its sums' k adjacent.
  std::vector<double> a_values(c.m * c.k), b_values(c.n * c.k);
  for (int64_t k = 0; k < c.k; ++k) {
    for (int64_t i = 0; i < c.m; ++i) a_values[i * c.k + k] = value(a.at(i, k));
    for (int64_t j = 0; j < c.n; ++j) b_values[j * c.k + k] = value(b.at(k, j));
  }
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      const double old = c.accumulate ? value(before.memory[before.offset + i * before.row_step + j]) : 0;
      const double biases =
          (c.num_biases > 0 ? value(bias0.at(0, j)) : 0) + (c.num_biases > 1 ? value(bias1.at(0, j)) : 0);
      double sum = old + biases;
      double size = std::fabs(old) + std::fabs(biases) * 2;
      for (int64_t k = 0; k < c.k; ++k) {
        const double product = a_values[i * c.k + k] * b_values[j * c.k + k];
        sum += product;
        size += std::fabs(product);
      }
      const double result = value(out.at(i, j));
      const double bound = static_cast<double>(c.k + 4) * F::sum_eps * size + F::eps * std::fabs(sum) + F::least;
      if (std::isnan(sum) ? std::isnan(result) : std::isinf(sum) ? result == sum : std::fabs(result - sum) <= bound)
        continue;
      char text[200];
      std::snprintf(text, sizeof text, "[%ld, %ld] is %.9g, not %.9g within %.3g", static_cast<long>(i),
                    static_cast<long>(j), result, sum, bound);
      return fail<Scalar>(c, text);
    }
  }
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) out.at(i, j) = before.memory[before.offset + i * before.row_step + j];
  if (!same_bits(out.memory, before.memory)) fail<Scalar>(c, "wrote outside of the output");
}

// Two products of one a^T, with rows that lie anywhere, in runs of any length, against sums in double; c.n and the number of biases
// choose the b's.
template <typename Scalar>
void check_joint(const Case& c) {
  using F = Format<Scalar>;
  // Row k lies where `place` says; twice as many rows as there are steps, some of them NaN, so that some may be read twice, some never.
  struct Rows {
    Matrix<Scalar> memory;
    std::vector<int64_t> place;
    std::vector<const void*> lines;

    Rows(int64_t k, int64_t width, int64_t extra) : memory(2 * k, width, true, extra) {
      for (int64_t i = 0; i < k; ++i) place.push_back(pick(0, 1) ? pick(0, 2 * k - 1) : i);
      for (int64_t i = 0; i < 2 * k; ++i)
        if (std::find(place.begin(), place.end(), i) == place.end())
          for (int64_t j = 0; j < width; ++j) memory.at(i, j) = not_a_number<Scalar>();
      for (int64_t i : place) lines.push_back(&memory.at(i, 0));
    }
    double at(int64_t k, int64_t j) { return value(memory.at(place[k], j)); }
  };
  struct Part {
    int64_t n;
    Rows b;
    Matrix<Scalar> out;
    double squares = 1;
  };
  const int64_t first = pick(0, 5);
  Rows a(c.k, first + c.m + c.extra, 0);
  const int num_parts = c.num_biases ? 2 : 1;
  std::vector<int64_t> run_ends;
  for (int64_t runs = pick(1, 4); runs > 1; --runs) run_ends.push_back(pick(0, c.k));
  run_ends.push_back(c.k);
  std::sort(run_ends.begin(), run_ends.end());
  cpu::JointMatmulParams p{};
  p.m = c.m, p.k = c.k, p.a = a.lines.data(), p.a_first = first, p.scalar = F::kind;
  p.num_parts = num_parts;
  p.num_runs = static_cast<int>(run_ends.size()), p.run_ends = run_ends.data();
  std::vector<Part> parts;
  for (int i = 0; i < num_parts; ++i) {
    const int64_t n = i ? pick(1, 70) : c.n;
    parts.push_back({n, Rows(c.k, n, c.extra), Matrix<Scalar>(c.m, n, true, 0)});
  }
  for (int i = 0; i < num_parts; ++i) {
    Part& part = parts[i];
    for (auto& value : part.out.memory) value = not_a_number<Scalar>();
    p.parts[i] = {part.n, part.b.lines.data(), part.out.data(), &part.squares};
  }
  cpu::joint_matmul(p, c.num_threads);
  for (Part& part : parts) {
    const std::vector<Scalar> once = part.out.memory;
    double sum_of_squares = 1;
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < part.n; ++j) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const double product = a.at(k, first + i) * part.b.at(k, j);
          sum += product;
          size += std::fabs(product);
        }
        const double result = value(part.out.at(i, j));
        sum_of_squares += result * result;
        const double bound = static_cast<double>(c.k + 4) * F::sum_eps * size + F::eps * std::fabs(sum) + F::least;
        if (!(std::fabs(result - sum) <= bound)) return fail<Scalar>(c, "a joint product is wrong");
      }
    }
    if (std::fabs(part.squares - sum_of_squares) > 1e-12 * sum_of_squares)
      return fail<Scalar>(c, "the sum of squares of a joint product is wrong");
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < part.n; ++j) part.out.at(i, j) = not_a_number<Scalar>();
    for (const Scalar& outside : part.out.memory)
      if (!std::isnan(value(outside))) return fail<Scalar>(c, "a joint product wrote outside of its output");
    part.out.memory = once;
  }
  const double before[] = {parts[0].squares, parts.back().squares};
  const std::vector<Scalar> outs[] = {parts[0].out.memory, parts.back().out.memory};
  for (Part& part : parts) part.squares = 1;
  cpu::joint_matmul(p, c.num_threads % 3 + 1);
  if (!same_bits(outs[0], parts[0].out.memory) || !same_bits(outs[1], parts.back().out.memory) ||
      std::memcmp(&before[0], &parts[0].squares, sizeof(double)) ||
      std::memcmp(&before[1], &parts.back().squares, sizeof(double)))
    fail<Scalar>(c, "another run of a joint product, with another number of threads, differs");
}

void check_every_type(const Case& c) {
  check<float>(c);
  check<double>(c);
  check<Half>(c);
  check<Bfloat16>(c);
}

void check_every_joint_type(const Case& c) {
  check_joint<float>(c);
  check_joint<double>(c);
  check_joint<Half>(c);
  check_joint<Bfloat16>(c);
}

int64_t random_size(int64_t most) {
  switch (pick(0, 3)) {
    case 0: return pick(0, 3);
    case 1: return pick(1, std::min<int64_t>(most, 40));
    default: return pick(1, most);
  }
}

}  // namespace

namespace fastrnn::cpu {
CacheSizes cache_sizes() { return tiny_caches ? CacheSizes{2 << 10, 8 << 10} : CacheSizes{32 << 10, 512 << 10}; }
}  // namespace fastrnn::cpu

int main(int count, char** arguments) {
  if (count != 4) return 2;
  tiny_caches = !std::strcmp(arguments[1], "tiny");
  random_bits.seed(static_cast<unsigned>(std::atoi(arguments[2])));
  const int cases = std::atoi(arguments[3]);
  for (int i = 0; i < cases; ++i) {
    const Case c{random_size(150),
                 random_size(150),
                 random_size(200),
                 pick(0, 1) == 1,
                 pick(0, 1) == 1,
                 pick(0, 1) == 1,
                 static_cast<int>(pick(0, 2)),
                 static_cast<int>(pick(1, 3)),
                 pick(0, 1) * pick(1, 20)};
    check_every_type(c);
    check_every_joint_type(c);
  }
  // Several blocks of each kind with the usual caches, too.
  check_every_type({67, 45, 2500, false, true, true, 1, 2, 0});
  check_every_joint_type({67, 45, 2500, false, true, true, 1, 2, 0});
  check_every_type({5, 2300, 1030, true, false, false, 2, 2, 3});
  check_every_type({515, 4100, 40, false, false, true, 1, 2, 1});
  check_every_type({600, 33, 300, true, false, true, 0, 2, 1});
  std::printf("%s, %s caches: %d wrong\n", cpu::isa_name(cpu::selected_isa()), arguments[1], failures);
  return failures ? 1 : 0;
}
