#include "work_queue.h"

#include "team.h"

namespace fastrnn::cpu {
namespace {

std::atomic<int64_t> times{0};

}  // namespace

int64_t times_given() { return times.load(std::memory_order_relaxed); }

WorkQueue::WorkQueue() = default;
WorkQueue::~WorkQueue() = default;

void WorkQueue::reset(int num_threads, int64_t own) {
  given_.reserve(num_threads);  // no thread's wish is met twice
  num_unfinished_.store(own, std::memory_order_relaxed);
}

bool WorkQueue::give(const Work& work) {
  const std::lock_guard lock(mutex_);
  if (!wanted()) return false;
  num_unfinished_.fetch_add(1, std::memory_order_relaxed);
  given_.push_back(work);
  num_given_.store(static_cast<int>(given_.size()), std::memory_order_relaxed);
  times.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool WorkQueue::take(Work& work) {
  num_waiting_.fetch_add(1, std::memory_order_relaxed);
  for (Patience patience; num_unfinished_.load(std::memory_order_acquire) > 0; patience.wait()) {
    if (num_given_.load(std::memory_order_relaxed) == 0) continue;
    const std::lock_guard lock(mutex_);
    if (given_.empty()) continue;
    work = given_.back();
    given_.pop_back();
    num_given_.store(static_cast<int>(given_.size()), std::memory_order_relaxed);
    num_waiting_.fetch_sub(1, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace fastrnn::cpu
