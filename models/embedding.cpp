#include "models/embedding.h"

#include <torch/nn/functional/linear.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <cmath>

namespace transpool {

torch::Tensor sinusoidal_positions(std::int64_t first, std::int64_t n, std::int64_t width,
                                   const torch::TensorOptions& options) {
  const auto place = torch::arange(first, first + n, options.dtype(torch::kFloat)).unsqueeze(1);
  const auto column = torch::arange(0, width, 2, options.dtype(torch::kFloat));
  const auto angle = place * torch::exp(column * (-std::log(10000.0) / static_cast<double>(width)));
  return torch::stack({angle.sin(), angle.cos()}, 2).flatten(1).narrow(1, 0, width);
}

EmbeddingImpl::EmbeddingImpl(std::int64_t vocabulary, std::int64_t width, double dropout) : width_(width) {
  tokens_ = register_module("tokens", torch::nn::Embedding(vocabulary, width));
  torch::nn::init::normal_(tokens_->weight, 0.0, std::pow(static_cast<double>(width), -0.5));
  dropout_ = register_module("dropout", torch::nn::Dropout(dropout));
}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& ids, std::int64_t first) {
  const auto scaled = tokens_->forward(ids) * std::sqrt(static_cast<double>(width_));
  return dropout_->forward(scaled + positions_from(first, ids.size(1)));
}

torch::Tensor EmbeddingImpl::logits(const torch::Tensor& x) { return torch::nn::functional::linear(x, tokens_->weight); }

torch::Tensor EmbeddingImpl::positions_from(std::int64_t first, std::int64_t n) {
  const auto& weight = tokens_->weight;
  if (!positions_.defined() || positions_.size(0) < first + n || positions_.device() != weight.device()) {
    const auto grown = std::max<std::int64_t>(first + n, 2 * (positions_.defined() ? positions_.size(0) : 0));
    positions_ =
        sinusoidal_positions(0, grown, width_, torch::TensorOptions().device(weight.device())).to(weight.scalar_type());
  }
  return positions_.narrow(0, first, n);
}

}  // namespace transpool
