#include "models/decoder.h"

#include "operators/attention/scaled_dot_product.h"

#include <fmt/format.h>

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> full_attention() {
  const auto selection = attention_registry().select("full");
  return selection.variant->make(selection.options);
}

Cost attention_part(const LayerConfig& layer, std::int64_t batch, std::int64_t queries, std::int64_t keys, bool causal,
                    bool masked, at::ScalarType dtype) {
  const auto selection = attention_registry().select("full");
  return selection.variant->cost({batch, layer.heads, queries, keys, layer.width / layer.heads, causal, masked, dtype},
                                 selection.options);
}

}  // namespace

DecoderLayerImpl::DecoderLayerImpl(const LayerConfig& config) {
  self_attention_ = register_module("self_attention", SelfAttention(config.width, config.heads, full_attention()));
  cross_attention_ = register_module("cross_attention", CrossAttention(config.width, config.heads));
  feed_forward_ = register_module("feed_forward", FeedForward(config));
  self_residual_ = register_module("self_residual", Residual(config));
  cross_residual_ = register_module("cross_residual", Residual(config));
  feed_forward_residual_ = register_module("feed_forward_residual", Residual(config));
}

torch::Tensor DecoderLayerImpl::forward(const torch::Tensor& x, const Encoded& encoded) {
  const auto [keys, values] = cross_attention_->project_memory(encoded.memory);
  const auto own = self_residual_->forward(
      x, [&](const torch::Tensor& t) { return self_attention_->forward(t, {.key_lengths = {}, .causal = true}); });
  const auto crossed = cross_residual_->forward(own, [&, k = keys, v = values](const torch::Tensor& t) {
    return cross_attention_->forward(t, k, v, {.key_lengths = encoded.lengths});
  });
  return feed_forward_residual_->forward(crossed, [&](const torch::Tensor& t) { return feed_forward_->forward(t); });
}

torch::Tensor DecoderLayerImpl::forward_step(const torch::Tensor& x, DecoderLayerState& state,
                                             const AttentionMask& memory_mask, std::int64_t step) {
  const auto own = self_residual_->forward(
      x, [&](const torch::Tensor& t) { return self_attention_->forward_step(t, state.keys, state.values, step); });
  const auto crossed = cross_residual_->forward(own, [&](const torch::Tensor& t) {
    return cross_attention_->forward(t, state.memory_keys, state.memory_values, memory_mask);
  });
  return feed_forward_residual_->forward(crossed, [&](const torch::Tensor& t) { return feed_forward_->forward(t); });
}

DecoderImpl::DecoderImpl(const DecoderConfig& config) {
  for (std::int64_t i = 0; i < config.layers; ++i)
    layers_.emplace_back(register_module(fmt::format("layer{}", i), DecoderLayer(config.layer)));
  if (config.layer.pre_norm)
    final_norm_ = register_module("final_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.layer.width})));
}

torch::Tensor DecoderImpl::forward(const torch::Tensor& x, const Encoded& encoded) {
  auto hidden = x;
  for (auto& layer : layers_) hidden = layer->forward(hidden, encoded);
  return final_norm_ ? final_norm_->forward(hidden) : hidden;
}

DecoderState DecoderImpl::start(const Encoded& encoded, std::int64_t limit) {
  DecoderState state;
  state.memory_lengths = encoded.lengths;
  for (auto& layer : layers_) {
    auto [keys, values] = layer->project_memory(encoded.memory);
    auto shape = keys.sizes().vec();
    shape[2] = limit;
    state.layers.push_back({keys, values, torch::empty(shape, keys.options()), torch::empty(shape, keys.options())});
  }
  return state;
}

torch::Tensor DecoderImpl::forward_step(const torch::Tensor& x, DecoderState& state) {
  auto hidden = x;
  for (std::size_t i = 0; i < layers_.size(); ++i)
    hidden = layers_[i]->forward_step(hidden, state.layers[i], {.key_lengths = state.memory_lengths}, state.step);
  ++state.step;
  return final_norm_ ? final_norm_->forward(hidden) : hidden;
}

Cost decoder_cost(const DecoderConfig& config, std::int64_t batch, std::int64_t target, std::int64_t memory, bool masked,
                  at::ScalarType dtype) {
  const auto& layer = config.layer;
  Cost one = projection_cost(batch * target, layer.width, 6 * layer.width, dtype);
  one += projection_cost(batch * memory, layer.width, 2 * layer.width, dtype);
  one += projection_cost(batch * target, layer.width, 2 * layer.feed_forward, dtype);
  one += attention_part(layer, batch, target, target, true, false, dtype);
  one += attention_part(layer, batch, target, memory, false, masked, dtype);
  return one.scaled(static_cast<double>(config.layers));
}

Cost generation_cost(const DecoderConfig& config, std::int64_t batch, std::int64_t steps, std::int64_t memory, bool masked,
                     at::ScalarType dtype) {
  // Token by token a step sees exactly the keys so far, so the sum over steps is the causal half of a whole pass.
  auto cost = decoder_cost(config, batch, steps, memory, masked, dtype);
  cost.backward_flops = 0;
  cost.activation_bytes = 0;
  return cost;
}

}  // namespace transpool
