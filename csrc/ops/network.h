// All layers of a module without derivatives.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "../cpu/buffer.h"
#include "checks.h"
#include "cpu.h"

namespace fastrnn::ops {

// What a call of `run_network` was given, where it fits together.
class Network {
 public:
  // weights: torch's order, (w_ih, w_hh, b_ih, b_hh, w_hr) of each layer and direction; h0, c0: zeros where not given.
  Network(int64_t cell, int64_t layers, int64_t directions, const Tensor& x, const TensorList& weights,
          const OptionalTensor& h0, const OptionalTensor& c0, const Tensor& y, const Tensor& h_n,
          const OptionalTensor& c_n)
      : cell_(static_cast<CellKind>(cell)),
        layers_(layers),
        directions_(directions),
        x_(x),
        weights_(weights),
        h0_(h0),
        c0_(c0),
        y_(y),
        h_n_(h_n),
        c_n_(c_n) {
    fits_ = cell >= 0 && cell <= static_cast<int64_t>(CellKind::kGru) && layers >= 1 && layers <= kMostLayers &&
            directions >= 1 && directions <= 2 && read_x() && read_weights() && check_states();
  }

  bool fits() const { return fits_; }

  void run() const {
    const int64_t bytes = steps_ * batch_ * directions_ * state_size_ * bytes_of(scalar_);
    cpu::Buffer between[2];  // outputs of the layers before the last
    const void* x = x_.const_data_ptr();
    for (int64_t layer = 0; layer < layers_; ++layer) {
      void* y = y_.mutable_data_ptr();
      if (layer < layers_ - 1) {
        cpu::Buffer& buffer = between[layer % 2];
        if (layer < 2) buffer.allocate(bytes);
        y = buffer.as<void>();
      }
      run_layer(params_of(layer, x, y));
      x = y;
    }
  }

 private:
  static constexpr int64_t kMostLayers = 1 << 20;  // far from where numbers of weights overflow

  bool fits(const Tensor& tensor, std::initializer_list<int64_t> sizes) const {
    const auto came = tensor.sizes();
    return tensor.scalar_type() == x_.scalar_type() && tensor.is_cpu() &&
           std::equal(came.begin(), came.end(), sizes.begin(), sizes.end()) && tensor.is_contiguous();
  }

  bool read_x() {
    const std::optional<ScalarKind> kind = storage_kind(x_.scalar_type());
    if (!kind) return false;
    scalar_ = *kind;
    if (x_.dim() != 3 || x_.numel() == 0 || !x_.is_contiguous()) return false;
    steps_ = x_.size(0), batch_ = x_.size(1), input_size_ = x_.size(2);
    return true;
  }

  bool read_weights() {
    const int64_t count = static_cast<int64_t>(weights_.size()), groups = layers_ * directions_;
    per_direction_ = count / groups;
    if (count % groups || per_direction_ < 2 || per_direction_ > 5) return false;
    has_bias_ = per_direction_ >= 4;
    projects_ = per_direction_ == 3 || per_direction_ == 5;
    if (projects_ && cell_ != CellKind::kLstm) return false;
    const Tensor& w_hh = weight(0, 0, 1);
    const int64_t gates = num_gates(cell_);
    if (w_hh.dim() != 2 || w_hh.size(0) < gates || w_hh.size(1) < 1) return false;
    hidden_size_ = w_hh.size(0) / gates;
    state_size_ = w_hh.size(1);
    if (!projects_ && state_size_ != hidden_size_) return false;
    const int64_t width = gates * hidden_size_;
    for (int64_t layer = 0; layer < layers_; ++layer) {
      for (int64_t d = 0; d < directions_; ++d) {
        if (!fits(weight(layer, d, 0), {width, input_size_of(layer)})) return false;
        if (!fits(weight(layer, d, 1), {width, state_size_})) return false;
        if (has_bias_ && !(fits(weight(layer, d, 2), {width}) && fits(weight(layer, d, 3), {width}))) return false;
        if (projects_ && !fits(weight(layer, d, per_direction_ - 1), {state_size_, hidden_size_})) return false;
      }
    }
    return true;
  }

  bool check_states() const {
    const int64_t states = layers_ * directions_;
    const bool has_cell = cell_ == CellKind::kLstm;
    if (h0_ && !fits(*h0_, {states, batch_, state_size_})) return false;
    if (c0_ && !fits(*c0_, {states, batch_, hidden_size_})) return false;
    if (c_n_.has_value() != has_cell || (c0_ && !has_cell)) return false;
    return fits(y_, {steps_, batch_, directions_ * state_size_}) && fits(h_n_, {states, batch_, state_size_}) &&
           (!c_n_ || fits(*c_n_, {states, batch_, hidden_size_}));
  }

  const Tensor& weight(int64_t layer, int64_t d, int64_t index) const {
    return weights_[static_cast<size_t>((layer * directions_ + d) * per_direction_ + index)];
  }
  int64_t input_size_of(int64_t layer) const { return layer == 0 ? input_size_ : directions_ * state_size_; }

  // `x`, `y`: the layer's input and output.
  cpu::LayerForwardParams params_of(int64_t layer, const void* x, void* y) const {
    const int64_t element = bytes_of(scalar_);
    const auto at = [element](const void* data, int64_t index) {
      return static_cast<const char*>(data) + index * element;
    };
    const auto out = [element](void* data, int64_t index) { return static_cast<char*>(data) + index * element; };
    const int64_t of_h = layer * directions_ * batch_ * state_size_, of_c = layer * directions_ * batch_ * hidden_size_;
    cpu::LayerForwardParams params{};
    params.shape.steps = steps_, params.shape.batch = batch_, params.shape.rows = steps_ * batch_;
    params.shape.hidden_size = hidden_size_, params.shape.state_size = state_size_;
    params.shape.directions = directions_;
    params.shape.cell = cell_, params.shape.scalar = scalar_;
    params.input_size = input_size_of(layer);
    params.x = x, params.y = y;
    params.h_n = out(h_n_.mutable_data_ptr(), of_h);
    if (c_n_) params.c_n = out(c_n_->mutable_data_ptr(), of_c);
    if (h0_) params.h0 = at(h0_->const_data_ptr(), of_h);
    if (c0_) params.c0 = at(c0_->const_data_ptr(), of_c);
    for (int64_t d = 0; d < directions_; ++d) {
      params.w_ih[d] = weight(layer, d, 0).const_data_ptr();
      params.w_hh[d] = weight(layer, d, 1).const_data_ptr();
      if (has_bias_) {
        params.b_ih[d] = weight(layer, d, 2).const_data_ptr();
        params.b_hh[d] = weight(layer, d, 3).const_data_ptr();
      }
      if (has_bias_ && cell_ == CellKind::kGru) params.b_hn[d] = at(params.b_hh[d], 2 * hidden_size_);
      if (projects_) params.w_hr[d] = weight(layer, d, per_direction_ - 1).const_data_ptr();
    }
    return params;
  }

  const CellKind cell_;
  const int64_t layers_, directions_;
  const Tensor& x_;
  const TensorList& weights_;
  const OptionalTensor &h0_, &c0_;
  const Tensor &y_, &h_n_;
  const OptionalTensor& c_n_;
  ScalarKind scalar_{};
  int64_t steps_ = 0, batch_ = 0, input_size_ = 0, hidden_size_ = 0, state_size_ = 0;
  int64_t per_direction_ = 0;  // weights of a layer's direction
  bool has_bias_ = false, projects_ = false, fits_ = false;
};

}  // namespace fastrnn::ops
