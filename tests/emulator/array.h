// Arrays of the kernels' storage types for programs that run without Python.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdlib>
#include <vector>

#include "../../csrc/params.h"
#include "grid.h"

namespace fastrnn::emulator {

using Vector = std::vector<double>;

template <typename Function>
auto with_type(ScalarKind kind, Function function) {
  switch (kind) {
    case ScalarKind::kDouble: return function(double{});
    case ScalarKind::kHalf: return function(__half{});
    case ScalarKind::kBfloat16: return function(__nv_bfloat16{});
    default: return function(float{});
  }
}

// An array of a storage type, of the exact size, so that AddressSanitizer guards its ends.
class Array {
 public:
  // Poison, for the kernels to write to.
  Array(ScalarKind kind, size_t count) : kind_(kind), count_(count), memory_(bytes() ? std::malloc(bytes()) : nullptr) {
    poison(memory_, bytes());
  }
  Array(ScalarKind kind, const Vector& values) : Array(kind, values.size()) {
    with_type(kind, [&](auto zero) {
      using T = decltype(zero);
      for (size_t i = 0; i < count_; ++i) static_cast<T*>(memory_)[i] = T(values[i]);
    });
  }
  Array(Array&& other) noexcept : kind_(other.kind_), count_(other.count_), memory_(other.memory_) {
    other.memory_ = nullptr;
  }
  ~Array() { std::free(memory_); }

  void* data() const { return memory_; }  // nullptr where empty
  void* at(int64_t index) const { return memory_ ? static_cast<unsigned char*>(memory_) + index * width() : nullptr; }
  Vector values() const {
    return with_type(kind_, [&](auto zero) {
      Vector values(count_);
      for (size_t i = 0; i < count_; ++i) values[i] = static_cast<double>(static_cast<decltype(zero)*>(memory_)[i]);
      return values;
    });
  }

 private:
  size_t width() const {
    return with_type(kind_, [](auto zero) { return sizeof zero; });
  }
  size_t bytes() const { return count_ * width(); }

  ScalarKind kind_;
  size_t count_;
  void* memory_;
};

}  // namespace fastrnn::emulator
