// A tensor as the checks see it, whether it came through torch's dispatcher (Operator, below) or straight from Python (python.h).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

namespace fastrnn::ops {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// A view: the tensor it was made of must outlive it.
class Tensor {
 public:
  using Numbers = std::span<const int64_t>;

  explicit Tensor(const torch::stable::Tensor& tensor)
      : torch_(&tensor),
        sizes_(tensor.sizes().data(), static_cast<size_t>(tensor.dim())),
        strides_(tensor.strides().data(), static_cast<size_t>(tensor.dim())),
        scalar_type_(tensor.scalar_type()),
        device_type_(tensor.device().type()),
        device_index_(tensor.get_device_index()) {}
  // On the CPU.
  Tensor(void* data, Numbers sizes, Numbers strides, ScalarType scalar_type)
      : data_(data), sizes_(sizes), strides_(strides), scalar_type_(scalar_type), device_type_(DeviceType::CPU) {}

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  Numbers sizes() const { return sizes_; }
  Numbers strides() const { return strides_; }
  int64_t size(int64_t d) const { return sizes_[static_cast<size_t>(d)]; }
  int64_t stride(int64_t d) const { return strides_[static_cast<size_t>(d)]; }
  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t size : sizes_) count *= size;
    return count;
  }
  bool is_contiguous() const {
    if (numel() == 0) return true;
    int64_t expected = 1;
    for (int64_t d = dim() - 1; d >= 0; --d) {
      if (size(d) != 1 && stride(d) != expected) return false;
      expected *= size(d);
    }
    return true;
  }

  ScalarType scalar_type() const { return scalar_type_; }
  DeviceType device_type() const { return device_type_; }
  int32_t device_index() const { return device_index_; }
  bool is_cpu() const { return device_type_ == DeviceType::CPU; }
  bool is_cuda() const { return device_type_ == DeviceType::CUDA; }

  const void* const_data_ptr() const { return torch_ ? torch_->const_data_ptr() : data_; }
  void* mutable_data_ptr() const { return torch_ ? torch_->mutable_data_ptr() : data_; }

 private:
  const torch::stable::Tensor* torch_ = nullptr;
  void* data_ = nullptr;
  Numbers sizes_, strides_;
  ScalarType scalar_type_;
  DeviceType device_type_;
  int32_t device_index_ = -1;
};

using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

// What a parameter of an operator is to torch.
template <typename T>
struct FromTorch {
  using Type = T;
  static const T& convert(const T& value) { return value; }
};
template <>
struct FromTorch<Tensor> {
  using Type = torch::stable::Tensor;
  static Tensor convert(const Type& tensor) { return Tensor(tensor); }
};
template <>
struct FromTorch<OptionalTensor> {
  using Type = std::optional<torch::stable::Tensor>;
  static OptionalTensor convert(const Type& tensor) { return tensor ? OptionalTensor(Tensor(*tensor)) : std::nullopt; }
};
template <>
struct FromTorch<TensorList> {
  using Type = std::vector<torch::stable::Tensor>;
  static TensorList convert(const Type& tensors) {
    TensorList list;
    list.reserve(tensors.size());
    for (const torch::stable::Tensor& tensor : tensors) list.emplace_back(tensor);
    return list;
  }
};

// `run`, a function of these types that returns nothing, as TORCH_BOX takes it.
template <auto run>
struct Operator;
template <typename... Parameters, void (*run)(Parameters...)>
struct Operator<run> {
  template <typename Parameter>
  using Torch = FromTorch<std::remove_cvref_t<Parameter>>;
  // By reference what `run` takes by reference.
  template <typename Parameter>
  using FromBox = std::conditional_t<std::is_reference_v<Parameter>, const typename Torch<Parameter>::Type&, Parameter>;

  static void call(FromBox<Parameters>... arguments) { run(Torch<Parameters>::convert(arguments)...); }
};

}  // namespace fastrnn::ops
