// Work in phases. A phase is some tasks; they are taken one by one, by whoever comes, and the next phase begins when all of them are
// done.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastrnn::cpu {

class Phases {
 public:
  struct Task {
    int64_t phase;
    int64_t index;  // negative: there is none now
  };

  // Phases take turns between `even` and `odd` tasks, at least one each.
  void reset(int64_t num_phases, int64_t even, int64_t odd) {
    num_phases_ = num_phases;
    num_tasks_[0] = even, num_tasks_[1] = odd;
    state_.store(0, std::memory_order_relaxed);
    num_done_.store(0, std::memory_order_relaxed);
  }

  Task take() {
    for (uint64_t state = state_.load(std::memory_order_acquire);;) {
      const Task task{static_cast<int64_t>(state >> 32), static_cast<int64_t>(state & (kOnePhase - 1))};
      if (task.phase == num_phases_ || task.index == num_tasks_[task.phase & 1]) return {task.phase, -1};
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) return task;
    }
  }
  // What `take` gave is done.
  void done(const Task& task) {
    if (num_done_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_tasks_[task.phase & 1]) return;
    num_done_.store(0, std::memory_order_relaxed);
    state_.store(static_cast<uint64_t>(task.phase + 1) * kOnePhase, std::memory_order_release);
  }
  // Whether a task that `take` did not find will never come.
  bool ended(const Task& task) const { return task.phase == num_phases_; }

 private:
  static constexpr uint64_t kOnePhase = uint64_t{1} << 32;

  int64_t num_phases_ = 0;
  int64_t num_tasks_[2] = {1, 1};
  alignas(64) std::atomic<uint64_t> state_{0};  // the phase, and in the lower half how many of its tasks are taken
  std::atomic<int64_t> num_done_{0};            // of them
};

}  // namespace fastrnn::cpu
