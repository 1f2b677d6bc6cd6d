#include "models/layer.h"

#include <torch/nn/functional/activation.h>

namespace transpool {

FeedForwardImpl::FeedForwardImpl(const LayerConfig& config) : gelu_(config.activation == "gelu") {
  inner_ = register_module("inner", torch::nn::Linear(config.width, config.feed_forward));
  outer_ = register_module("outer", torch::nn::Linear(config.feed_forward, config.width));
  dropout_ = register_module("dropout", torch::nn::Dropout(config.dropout));
}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x) {
  const auto hidden = inner_->forward(x);
  return outer_->forward(dropout_->forward(gelu_ ? torch::gelu(hidden) : torch::relu(hidden)));
}

ResidualImpl::ResidualImpl(const LayerConfig& config) : pre_norm_(config.pre_norm) {
  norm_ = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.width})));
  dropout_ = register_module("dropout", torch::nn::Dropout(config.dropout));
}

}  // namespace transpool
