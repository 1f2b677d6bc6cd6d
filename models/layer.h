#pragma once

#include "operators/options.h"

#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

namespace transpool {

/// What encoder and decoder layers have in common.
struct LayerConfig {
  std::int64_t width = 512;
  std::int64_t heads = 8;
  std::int64_t feed_forward = 2048;
  bool pre_norm = false;            ///< normalise before each block, else after its residual sum
  std::string activation = "relu";  ///< relu | gelu
  double dropout = 0.1;             ///< on each block's output and inside the feed-forward block
};

/// Two linear layers with an activation between.
class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const LayerConfig& config);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  bool gelu_;
  torch::nn::Linear inner_{nullptr};
  torch::nn::Linear outer_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};
TORCH_MODULE(FeedForward);

/// A residual block around any function of x: x + f(norm(x)), or norm(x + f(x)).
class ResidualImpl : public torch::nn::Module {
 public:
  explicit ResidualImpl(const LayerConfig& config);

  template <class Block>
  torch::Tensor forward(const torch::Tensor& x, const Block& block) {
    if (pre_norm_) return x + dropout_->forward(block(norm_->forward(x)));
    return norm_->forward(x + dropout_->forward(block(x)));
  }

 private:
  bool pre_norm_;
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};
TORCH_MODULE(Residual);

}  // namespace transpool
