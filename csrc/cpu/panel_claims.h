// The panels of a step, claimed one by one: by their owner from the first on, and by who has done all of its own from the last on. So
// the threads that share a step's units come to its end together, however fast their cores are.
#pragma once

#include <atomic>
#include <cstdint>

#include "team.h"

namespace fastrnn::cpu {

// Of one owner. Two steps take turns: a step's claims begin when its owner opens them, and end by themselves.
class PanelClaims {
 public:
  // By the owner, when what others need of it for the step is there.
  void open(int64_t step) {
    of(step + 1).store(kClosed, std::memory_order_relaxed);  // all are past the barrier between that step and this
    of(step).store(0, std::memory_order_release);
  }
  // The next of `count` panels for the owner; negative: none is left.
  int64_t take_first(int64_t step, int64_t count) {
    const uint64_t claims = of(step).fetch_add(1, std::memory_order_relaxed);
    return taken(claims) < count ? first(claims) : -1;
  }
  // One for another thread, which waits until they are open.
  int64_t take_last(int64_t step, int64_t count) {
    uint64_t claims = of(step).load(std::memory_order_acquire);
    for (Patience patience; first(claims) >= kClosed; claims = of(step).load(std::memory_order_acquire))
      patience.wait();
    if (taken(claims) >= count) return -1;
    claims = of(step).fetch_add(kOneFromLast, std::memory_order_acquire);
    return taken(claims) < count ? count - 1 - last(claims) : -1;
  }

 private:
  static constexpr uint64_t kOneFromLast = uint64_t{1} << 32;
  static constexpr int64_t kClosed = int64_t{1} << 30;

  static int64_t first(uint64_t claims) { return static_cast<int64_t>(claims & (kOneFromLast - 1)); }
  static int64_t last(uint64_t claims) { return static_cast<int64_t>(claims >> 32); }
  static int64_t taken(uint64_t claims) { return first(claims) + last(claims); }

  std::atomic<uint64_t>& of(int64_t step) { return claims_[step & 1]; }

  // From the first, and from the last in the upper half.
  alignas(64) std::atomic<uint64_t> claims_[2] = {kClosed, kClosed};
};

}  // namespace fastrnn::cpu
