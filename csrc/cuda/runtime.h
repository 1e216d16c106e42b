// How the runtime is asked: what it refuses leaves no error behind, and what never changes is asked once.
#pragma once

#include <cuda_runtime.h>

#include <compare>
#include <cstddef>
#include <functional>
#include <map>
#include <mutex>
#include <optional>

namespace fastrnn::cuda {

// Makes a call of the runtime. Its error is returned and not found again by whoever checks next; but where one was there before,
// one stays for whoever caused that.
template <typename Call>
cudaError_t attempt(Call call) {
  const bool was_clear = cudaPeekAtLastError() == cudaSuccess;
  const cudaError_t error = call();
  if (error != cudaSuccess && was_clear) (void)cudaGetLastError();
  return error;
}

// Whether the device says no, as it will say the next time. Other errors pass, or tell of something else.
inline bool is_refusal(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidClusterSize:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNotSupported: return true;
    default: return false;
  }
}

// What the runtime is asked of a kernel.
struct Question {
  enum Kind { kAllSharedMemory, kLargeClusters, kResidentBlocks, kResidentClusters } kind;
  const void* kernel;
  size_t shared_bytes;
  int cluster_size;
  int device;
  auto operator<=>(const Question&) const = default;
};

// The answer of `ask` on the current device. It is kept, unless there is none or `ask` throws.
inline std::optional<int> answer(Question question, const std::function<std::optional<int>()>& ask) {
  static std::mutex mutex;
  static std::map<Question, int> known;
  if (attempt([&] { return cudaGetDevice(&question.device); }) != cudaSuccess) return ask();
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(question); found != known.end()) return found->second;
  const std::optional<int> told = ask();
  if (told) known.emplace(question, *told);
  return told;
}

}  // namespace fastrnn::cuda
