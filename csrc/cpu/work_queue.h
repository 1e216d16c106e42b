// Work for threads that have none. Cores are seldom equally fast (two kinds of them in one processor, other programs, the other
// thread of a core): a thread that has done its row group gets half of the samples of one that has not, from where that stands.
// What is computed, and in which order it is summed, does not depend on who does it.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "batch.h"

namespace fastrnn::cpu {

// Samples of one direction, and the step that is theirs to do next.
struct Work {
  static constexpr int64_t kBeginning = -1;  // `step` where none has been done

  int64_t direction;
  RowGroup group;
  int64_t step;
};

class WorkQueue {
 public:
  WorkQueue();
  ~WorkQueue();

  // `own`: how many pieces of work the threads begin by themselves.
  void reset(int num_threads, int64_t own);

  // Whether a thread waits for work that nobody has given yet. Cheap: for every step.
  bool wanted() const {
    return num_waiting_.load(std::memory_order_relaxed) > num_given_.load(std::memory_order_relaxed);
  }
  // Gives work away, if it is still wanted.
  bool give(const Work& work);
  // Own work, or what `take` gave, is done.
  void done() { num_unfinished_.fetch_sub(1, std::memory_order_release); }
  // Waits for work. False: all is done.
  bool take(Work& work);

 private:
  std::mutex mutex_;
  std::vector<Work> given_;
  alignas(64) std::atomic<int> num_waiting_{0};
  std::atomic<int> num_given_{0};  // size of `given_`
  std::atomic<int64_t> num_unfinished_{0};
};

// How often work has been given away in this process. For tests.
int64_t times_given();

}  // namespace fastrnn::cpu
