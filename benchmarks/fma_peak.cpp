// Prints the float32 operations per second that N threads reach with fused multiply-adds in registers alone.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kChains = 12;  // more than latency times units, fewer than registers
constexpr long kIterations = 40'000'000;

void multiply_and_add(float* sink) {
  Vector sums[kChains], factor = {}, term = {};
  factor += *sink;
  term += *sink * 1e-9f;
  for (int k = 0; k < kChains; ++k) sums[k] = factor * static_cast<float>(k);
  for (long i = 0; i < kIterations; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      sums[k] = sums[k] * factor + term;
    }
  }
  for (int k = 1; k < kChains; ++k) sums[0] += sums[k];
  *sink = sums[0][0];
}

}  // namespace

int main(int argc, char** argv) {
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::vector<float> sinks(64 * num_threads, 0.999f);
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    std::vector<std::thread> threads;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(multiply_and_add, &sinks[64 * i]);
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double operations = 2.0 * kIterations * kChains * (kBytes / sizeof(float)) * num_threads;
    if (operations / seconds.count() > best) best = operations / seconds.count();
  }
  std::printf("%.6g\n", best);
}
