// Cuts the scratch of a plan out of the caller's buffer.
#pragma once

#include <stdexcept>
#include <string>

#include "recurrence.h"

namespace fastrnn::cuda {

class Scratch {
 public:
  Scratch(const Run& run, std::string what) : run_(run), what_(std::move(what)) {}

  void* take(int64_t bytes) {
    void* array = static_cast<unsigned char*>(run_.workspace) + used_;
    used_ += (bytes + 255) / 256 * 256;
    if (run_.workspace == nullptr || used_ > run_.workspace_bytes)
      throw std::runtime_error(what_ + ": the workspace has " + std::to_string(run_.workspace_bytes) +
                               " bytes, more are needed");
    return array;
  }

 private:
  const Run& run_;
  std::string what_;
  int64_t used_ = 0;
};

}  // namespace fastrnn::cuda
