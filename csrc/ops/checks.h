// Checks of the tensors an operator is given, one after another, against what the first of them fixed. The Python layer
// checks in the user's words before it calls; these checks keep a wrong call from reading or writing outside a tensor.
//
// Each argument is checked in the order presence, shape, dtype, device, contiguity, and an error names the argument, what
// came and what was expected.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../params.h"
#include "tensor.h"

namespace fastrnn::ops {

// Becomes a RuntimeError in Python with exactly this text; STD_TORCH_CHECK would put file and line in front.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename Sizes>
std::string list_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '[';
  const char* separator = "";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << ']';
  return text.str();
}

inline std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(dtype);
  }
}

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.device_index());
  return "a device of type " + std::to_string(static_cast<int>(tensor.device_type()));
}

// What layers are computed in; none: another type.
inline std::optional<ScalarKind> storage_kind(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return ScalarKind::kFloat;
    case ScalarType::Double: return ScalarKind::kDouble;
    case ScalarType::Half: return ScalarKind::kHalf;
    case ScalarType::BFloat16: return ScalarKind::kBfloat16;
    default: return std::nullopt;
  }
}

inline ScalarKind scalar_kind(const char* name, const Tensor& tensor) {
  const std::optional<ScalarKind> kind = storage_kind(tensor.scalar_type());
  if (!kind) fail(name, " is ", dtype_text(tensor.scalar_type()), ", expected float32, float64, float16 or bfloat16");
  return *kind;
}

using Sizes = std::vector<int64_t>;

// Those of one dimension after the other.
inline Sizes joined(std::initializer_list<Sizes> parts) {
  Sizes sizes;
  for (const Sizes& part : parts) sizes.insert(sizes.end(), part.begin(), part.end());
  return sizes;
}

// An argument by name; without a tensor it was not given.
struct Argument {
  Argument(std::string name, const Tensor& tensor) : name(std::move(name)), tensor(&tensor) {}
  Argument(std::string name, const OptionalTensor& tensor)
      : name(std::move(name)), tensor(tensor.has_value() ? &*tensor : nullptr) {}

  // What must be given exactly when `condition` holds, and says so in words.
  Argument& exactly_if(bool condition, const char* words) {
    if (condition && !tensor) fail(name, " is missing: ", words, " needs it");
    if (!condition && tensor) fail(name, " is given, but it goes with ", words, " alone");
    return *this;
  }

  std::string name;
  const Tensor* tensor;
};

// The tensors of one call: those checked against `leader`'s storage type and device.
class Arguments {
 public:
  Arguments(const char* leader_name, const Tensor& leader)
      : leader_name_(leader_name),
        leader_(leader),
        scalar_(leader.scalar_type()),
        acc_(scalar_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float) {}

  ScalarType scalar() const { return scalar_; }
  ScalarType acc() const { return acc_; }

  // Address of a checked tensor, nullptr where it was not given.
  const void* in(const Argument& argument, ScalarType dtype, const Sizes& sizes) const {
    if (!argument.tensor) return nullptr;
    check(argument, dtype, sizes);
    return with_memory(argument, argument.tensor->const_data_ptr());
  }
  void* out(const Argument& argument, ScalarType dtype, const Sizes& sizes) const {
    if (!argument.tensor) return nullptr;
    check(argument, dtype, sizes);
    return with_memory(argument, argument.tensor->mutable_data_ptr());
  }

  // One tensor per direction, or none where they are not `given`.
  void in_list(const char* name, const TensorList& tensors, bool given, int64_t directions, const Sizes& sizes,
               const void* (&pointers)[kMaxDirections]) const {
    const int64_t expected = given ? directions : 0;
    if (static_cast<int64_t>(tensors.size()) != expected)
      fail(name, " has ", tensors.size(), " tensors, expected ", expected);
    for (int64_t d = 0; d < kMaxDirections; ++d)
      pointers[d] =
          d < expected ? in({std::string(name) + '[' + std::to_string(d) + ']', tensors[d]}, scalar_, sizes) : nullptr;
  }

  // As in_list, to write to; of any type.
  void out_list(const char* name, const TensorList& tensors, int64_t directions, ScalarType dtype, const Sizes& sizes,
                void* (&pointers)[kMaxDirections]) const {
    if (!tensors.empty() && static_cast<int64_t>(tensors.size()) != directions)
      fail(name, " has ", tensors.size(), " tensors, expected ", directions, " or none");
    for (size_t d = 0; d < tensors.size(); ++d)
      pointers[d] = out({std::string(name) + '[' + std::to_string(d) + ']', tensors[d]}, dtype, sizes);
  }

  void check_dtype(const Argument& argument, ScalarType expected) const {
    const ScalarType dtype = argument.tensor->scalar_type();
    if (dtype == expected) return;
    fail(argument.name, " is ", dtype_text(dtype), ", expected ", dtype_text(expected), " beside ", leader_name_,
         " in ", dtype_text(scalar_));
  }

  void check_device(const Argument& argument) const {
    const Tensor& tensor = *argument.tensor;
    if (tensor.device_type() == leader_.device_type() && tensor.device_index() == leader_.device_index()) return;
    fail(argument.name, " is on ", device_text(tensor), ", expected ", device_text(leader_), " as ", leader_name_);
  }

 private:
  // A storage can be made smaller than the tensors in it.
  template <typename Data>
  static Data* with_memory(const Argument& argument, Data* data) {
    if (!data && argument.tensor->numel() > 0) fail(argument.name, " has no memory: its storage is empty");
    return data;
  }

  void check(const Argument& argument, ScalarType dtype, const Sizes& sizes) const {
    const Tensor& tensor = *argument.tensor;
    const auto came = tensor.sizes();
    if (!std::equal(came.begin(), came.end(), sizes.begin(), sizes.end()))
      fail(argument.name, " has shape ", list_text(came), ", expected ", list_text(sizes));
    check_dtype(argument, dtype);
    check_device(argument);
    if (!tensor.is_contiguous())
      fail(argument.name, " has strides ", list_text(tensor.strides()), ", expected a contiguous tensor");
  }

  const char* leader_name_;
  const Tensor& leader_;
  ScalarType scalar_, acc_;
};

}  // namespace fastrnn::ops
