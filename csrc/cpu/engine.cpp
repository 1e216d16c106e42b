// Chooses the instruction set.
#include "engine.h"

#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastrnn::cpu {

#define FASTRNN_DECLARE_ENGINE(name)                                                         \
  namespace name {                                                                           \
  void recurrence_forward(const ForwardParams& params, int num_threads, int64_t l2_bytes);   \
  void recurrence_backward(const BackwardParams& params, int num_threads, int64_t l2_bytes); \
  }
FASTRNN_DECLARE_ENGINE(portable)
#if defined(__x86_64__)
FASTRNN_DECLARE_ENGINE(avx2)
FASTRNN_DECLARE_ENGINE(avx512)
#endif

namespace {

struct Engine {
  const char* isa;
  bool available;
  void (*forward)(const ForwardParams&, int, int64_t);
  void (*backward)(const BackwardParams&, int, int64_t);
};

const Engine& choose_engine() {
  // The best first.
  static const Engine engines[] = {
#if defined(__x86_64__)
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl"),
       avx512::recurrence_forward, avx512::recurrence_backward},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
       avx2::recurrence_forward, avx2::recurrence_backward},
#endif
      {"portable", true, portable::recurrence_forward, portable::recurrence_backward},
  };
  const char* const wanted = std::getenv("FASTRNN_CPU_ISA");
  std::string available;
  for (const Engine& engine : engines) {
    if (!engine.available) continue;
    if (!wanted || !*wanted || engine.isa == std::string(wanted)) return engine;
    available += (available.empty() ? "" : ", ") + std::string(engine.isa);
  }
  throw std::runtime_error("FASTRNN_CPU_ISA is '" + std::string(wanted) + "', but this CPU runs: " + available);
}

const Engine& engine() {
  static const Engine& chosen = choose_engine();
  return chosen;
}

// Of one core. Unknown to some virtual machines.
int64_t l2_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0) return static_cast<int64_t>(size);
#endif
    return int64_t{512} * 1024;
  }();
  return bytes;
}

}  // namespace

void recurrence_forward(const ForwardParams& params, int num_threads) {
  engine().forward(params, num_threads, l2_bytes());
}

void recurrence_backward(const BackwardParams& params, int num_threads) {
  engine().backward(params, num_threads, l2_bytes());
}

const char* isa() { return engine().isa; }

}  // namespace fastrnn::cpu
