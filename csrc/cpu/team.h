// Threads that work on one sequence together: the parallel region and the barrier inside it.
#pragma once

#include <sched.h>

#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastrnn::cpu {

// Between two looks at what a thread waits for: spins for some 20 microseconds, several steps' worth, then gives the core away, so
// that threads which share their cores with other work do not stand in each other's way.
class Patience {
 public:
  void wait() {
    if (spins_ == kSpins) {
      sched_yield();
      return;
    }
    ++spins_;
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  static constexpr int kSpins = 1000;
  int spins_ = 0;
};

// A meeting point of `size` threads.
class Barrier {
 public:
  void set_size(int size) { size_ = size; }

  void wait() {
    if (size_ == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    Patience patience;
    while (phase_.load(std::memory_order_acquire) == phase) patience.wait();
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  int size_ = 1;
};

// What a team does. Virtual, so that the region itself is compiled once, for any CPU.
class TeamJob {
 public:
  // Called once, by one thread, when the size of the team is known. May throw.
  virtual void prepare(int num_threads) = 0;
  // Called by every thread of the team. Must not throw.
  virtual void work(int thread) = 0;

 protected:
  ~TeamJob() = default;
};

// Runs `job` on at most `num_threads` threads: on fewer where the OpenMP runtime gives fewer, as inside another region.
void run_team(TeamJob& job, int num_threads);

}  // namespace fastrnn::cpu
