// Holds csrc/cpu/simd.h and simd_math.h to their word, for the instruction set that -DFASTRNN_ISA_HEADER names:
// the error of sigmoid and tanh in units of the last place, special values, the 16-bit conversions, access to parts.
// Prints the errors found; the exit status is the number of failures.
//
//   simd_accuracy [STRIDE]     looks at every STRIDE-th float; 1 is all of them (a minute)
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include FASTRNN_ISA_HEADER
#include "../../csrc/cpu/simd_math.h"

namespace {

using namespace fastrnn::cpu::FASTRNN_ISA;
using fastrnn::cpu::Bfloat16;
using fastrnn::cpu::Half;

// Units in the last place.
constexpr double kBoundOfSigmoid = kHasFma ? 2.0 : 2.5, kBoundOfTanh = kHasFma ? 2.1 : 2.5;

int failures = 0;

void expect(bool holds, const char* what, double value = 0) {
  if (holds) return;
  ++failures;
  if (failures <= 20) std::printf("FAILED: %s (%.17g)\n", what, value);
}

// NaN like NaN; otherwise the same value and sign.
template <typename T>
bool same(T a, T b) {
  return a == b ? std::signbit(a) == std::signbit(b) : (std::isnan(a) && std::isnan(b));
}

// Distance from the exact value in units of the last place of T there.
template <typename T, typename Wide>
double ulps(T value, Wide exact) {
  int exponent;
  std::frexp(exact, &exponent);
  exponent = std::max(exponent, std::numeric_limits<T>::min_exponent) - std::numeric_limits<T>::digits;
  return static_cast<double>(std::fabs(std::ldexp(static_cast<Wide>(value) - exact, -exponent)));
}

template <typename Wide>
Wide exact_sigmoid(Wide x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

struct Worst {
  double error = 0, at = 0;
  void take(double e, double x) {
    if (!(e <= error)) error = e, at = x;
  }
};

template <typename T, typename Wide>
struct Accuracy {
  Worst of_sigmoid, of_tanh;
  T inputs[Vec<T>::kLanes], s[Vec<T>::kLanes], t[Vec<T>::kLanes];
  int filled = 0;

  void add(T x) {
    inputs[filled++] = x;
    if (filled == Vec<T>::kLanes) flush();
  }
  void flush() {
    for (int i = filled; i < Vec<T>::kLanes; ++i) inputs[i] = 0;
    store(s, sigmoid(load(inputs, Whole{})), Whole{});
    store(t, tanh(load(inputs, Whole{})), Whole{});
    for (int i = 0; i < filled; ++i) {
      const T x = inputs[i];
      if (std::isnan(x)) {
        expect(std::isnan(s[i]) && std::isnan(t[i]), "NaN must stay NaN", x);
        continue;
      }
      of_sigmoid.take(ulps(s[i], exact_sigmoid(static_cast<Wide>(x))), x);
      of_tanh.take(ulps(t[i], std::tanh(static_cast<Wide>(x))), x);
      expect(s[i] >= 0 && s[i] <= 1 && std::fabs(t[i]) <= 1, "range", x);
      expect(std::signbit(t[i]) == std::signbit(x), "tanh keeps the sign", x);
    }
    filled = 0;
  }
  void report(const char* type) {
    std::printf("%s sigmoid %.3f ulp at %.9g, tanh %.3f ulp at %.9g\n", type, of_sigmoid.error, of_sigmoid.at,
                of_tanh.error, of_tanh.at);
    expect(of_sigmoid.error <= kBoundOfSigmoid, "sigmoid's error", of_sigmoid.at);
    expect(of_tanh.error <= kBoundOfTanh, "tanh's error", of_tanh.at);
  }
};

template <typename T, typename Accuracy>
void add_special(Accuracy& accuracy) {
  using Limits = std::numeric_limits<T>;
  for (T x : {T(0),
              Limits::denorm_min(),
              Limits::min(),
              Limits::epsilon(),
              T(1),
              T(0.34657359),
              T(0.34657360),
              T(9),
              T(20),
              T(87.3),
              T(88.7),
              T(88.8),
              T(103.9),
              T(104.1),
              T(708.3),
              T(709.8),
              T(745),
              T(746),
              T(1e30),
              Limits::max(),
              Limits::infinity(),
              Limits::quiet_NaN()}) {
    accuracy.add(x);
    accuracy.add(-x);
  }
}

void check_float_functions(uint32_t stride) {
  Accuracy<float, double> accuracy;
  add_special<float>(accuracy);
  for (uint64_t i = 0; i < uint64_t{1} << 32; i += stride) {
    const uint32_t bits = static_cast<uint32_t>(i);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    accuracy.add(x);
  }
  accuracy.flush();
  accuracy.report("float");
}

void check_double_functions() {
  Accuracy<double, long double> accuracy;
  add_special<double>(accuracy);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> near(-50, 50), far(-760, 760), exponent(-320, 2);
  for (int i = 0; i < 300000; ++i) {
    accuracy.add(near(random));
    accuracy.add(far(random));
    accuracy.add(std::pow(10.0, exponent(random)) * (i % 2 ? 1 : -1));
  }
  accuracy.flush();
  accuracy.report("double");
}

void check_relu() {
  const float inputs[] = {-1.0f,
                          0.0f,
                          2.0f,
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()};
  for (float x : inputs) {
    float out[Float::kLanes];
    store(out, relu(Float(x)), Whole{});
    expect(same(out[0], x < 0 ? 0 : x), "relu", x);
    store(out, positive(Float(x), Float(3)), Whole{});
    expect(same(out[0], x > 0 ? 3.0f : 0.0f), "positive", x);
  }
}

// The exact value of a half, by its definition.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) value = fraction ? std::nan("") : std::numeric_limits<double>::infinity();
  return bits & 0x8000 ? -value : value;
}
double bfloat16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

float widen_one(uint16_t bits, auto scalar) {
  decltype(scalar) in[Float::kLanes] = {};
  float out[Float::kLanes];
  in[0].bits = bits;
  store(out, load(in, Whole{}), Whole{});
  return out[0];
}
uint16_t narrow_one(float x, auto scalar) {
  decltype(scalar) out[Float::kLanes];
  store(out, Float(x), Whole{});
  return out[0].bits;
}

// Widening is exact, narrowing is its inverse, and the borders between neighbours round to the even one.
template <typename Scalar>
void check_conversions(double (*value)(uint16_t), uint16_t infinity) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i), magnitude = bits & 0x7fff;
    const float wide = widen_one(bits, Scalar{});
    expect(same(static_cast<double>(wide), value(bits)), "widening", i);
    if (magnitude > infinity) {
      expect((narrow_one(wide, Scalar{}) & 0x7fff) > infinity, "NaN must stay NaN", i);
      continue;
    }
    expect(narrow_one(wide, Scalar{}) == bits, "narrowing what was widened", i);
    if (magnitude >= infinity - 1) continue;
    const float border = static_cast<float>((value(bits) + value(static_cast<uint16_t>(bits + 1))) / 2);
    const uint16_t even = static_cast<uint16_t>(bits + (bits & 1));
    expect(narrow_one(border, Scalar{}) == even, "a border rounds to even", i);
    const float away = bits & 0x8000 ? -INFINITY : INFINITY;
    expect(narrow_one(std::nextafterf(border, away), Scalar{}) == bits + 1, "above a border", i);
    expect(narrow_one(std::nextafterf(border, 0), Scalar{}) == bits, "below a border", i);
  }
  expect(narrow_one(std::numeric_limits<float>::max(), Scalar{}) == infinity, "overflow is infinity");
}

// A part reads and writes its own elements alone.
template <typename Scalar>
void check_parts() {
  using V = Vec<typename fastrnn::cpu::AccOf<Scalar>::type>;
  for (int lanes = 1; lanes < V::kLanes; ++lanes) {
    // Of just that size, so that AddressSanitizer sees a lane too many.
    std::vector<Scalar> in(lanes), out(lanes);
    typename V::Element wide[V::kLanes], back[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) wide[i] = static_cast<typename V::Element>(i + 1);
    store(in.data(), load(wide, Whole{}), Part{lanes});
    store(back, load(in.data(), Part{lanes}), Whole{});
    for (int i = 0; i < V::kLanes; ++i) expect(back[i] == (i < lanes ? i + 1 : 0), "load of a part", lanes);
    Scalar guarded[V::kLanes + 1];
    std::memset(guarded, 0x11, sizeof guarded);
    store(guarded, load(wide, Whole{}), Part{lanes});
    Scalar untouched;
    std::memset(&untouched, 0x11, sizeof untouched);
    for (int i = lanes; i <= V::kLanes; ++i)
      expect(std::memcmp(&guarded[i], &untouched, sizeof untouched) == 0, "store of a part", lanes);
  }
}

}  // namespace

int main(int argc, char** argv) {
  check_float_functions(argc > 1 ? static_cast<uint32_t>(std::atoi(argv[1])) : 509);
  check_double_functions();
  check_relu();
  check_conversions<Half>(half_value, 0x7c00);
  check_conversions<Bfloat16>(bfloat16_value, 0x7f80);
  check_parts<float>();
  check_parts<double>();
  check_parts<Half>();
  check_parts<Bfloat16>();
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
