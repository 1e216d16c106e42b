// Prints the nanoseconds that a cache line takes from one core to another and back: more where they share no last-level cache.
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

namespace {

constexpr int kRounds = 50'000;
alignas(128) std::atomic<int> turn{0};

cpu_set_t allowed;  // what this process may use

// The `index`-th core of those.
void stay_on(int index) {
  cpu_set_t own;
  CPU_ZERO(&own);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && index-- == 0) CPU_SET(cpu, &own);
  sched_setaffinity(0, sizeof own, &own);
}

void answer(int own, int other) {
  for (int i = 0; i < kRounds; ++i) {
    while (turn.load(std::memory_order_acquire) != own) {
    }
    turn.store(other, std::memory_order_release);
  }
}

}  // namespace

int main() {
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return 1;
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    turn = 1;
    std::thread second([] {
      stay_on(1);
      answer(1, 0);
    });
    std::thread first([] {
      stay_on(0);
      answer(0, 1);
    });
    const auto start = std::chrono::steady_clock::now();
    first.join();
    second.join();
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    if (run == 0 || time.count() / kRounds < best) best = time.count() / kRounds;
  }
  std::printf("%.1f\n", best);
}
