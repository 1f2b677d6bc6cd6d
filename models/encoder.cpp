#include "models/encoder.h"

#include <fmt/format.h>

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> make_attention(const Json& value) {
  const auto selection = attention_registry().select(value);
  return selection.variant->make(selection.options);
}

std::shared_ptr<const PoolingOperator> make_pooling(const Json& value) {
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

}  // namespace

Json to_json(const EncoderConfig& config) {
  Json widths = Json::object();
  for (const auto& [layer, width] : config.widths) widths[std::to_string(layer)] = width;
  return Json{{"layers", config.layers},
              {"width", config.layer.width},
              {"heads", config.layer.heads},
              {"feed_forward", config.layer.feed_forward},
              {"norm", config.layer.pre_norm ? "pre" : "post"},
              {"activation", config.layer.activation},
              {"dropout", config.layer.dropout},
              {"attention", config.attention},
              {"pooling", config.pooling},
              {"scorer", config.scorer},
              {"widths", widths}};
}

EncoderConfig encoder_config_from_json(const Json& json, const Where& where) {
  const Options options({{.name = "layers", .type = OptionType::integer, .minimum = 1},
                         {.name = "width", .type = OptionType::integer, .minimum = 1},
                         {.name = "heads", .type = OptionType::integer, .minimum = 1},
                         {.name = "feed_forward", .type = OptionType::integer, .minimum = 1},
                         {.name = "norm", .type = OptionType::choice, .choices = {"pre", "post"}},
                         {.name = "activation", .type = OptionType::choice, .choices = {"relu", "gelu"}},
                         {.name = "dropout", .type = OptionType::real, .minimum = 0, .maximum = 0.999},
                         {.name = "attention", .type = OptionType::variant},
                         {.name = "pooling", .type = OptionType::variant},
                         {.name = "scorer", .type = OptionType::variant},
                         {.name = "widths", .type = OptionType::object}},
                        json, "key of an encoder", where);
  EncoderConfig config;
  config.layers = options.integer("layers");
  config.layer = {options.integer("width"),      options.integer("heads"),   options.integer("feed_forward"),
                  options.text("norm") == "pre", options.text("activation"), options.real("dropout")};
  config.attention = options.raw("attention");
  config.pooling = options.raw("pooling");
  config.scorer = options.raw("scorer");
  for (const auto& item : options.raw("widths").items())
    config.widths[std::stoll(item.key())] = item.value().get<std::int64_t>();
  return config;
}

void check_encoder(const EncoderConfig& config, std::int64_t source_length, const std::string& device, at::ScalarType dtype,
                   const Where& where) {
  if (config.layer.heads < 1 || config.layer.width % config.layer.heads != 0)
    where.fail(fmt::format("heads: {} does not divide width {}; allowed: a divisor of the width", config.layer.heads,
                           config.layer.width));
  const auto attention = attention_registry().select(config.attention, where);
  const auto pooling = pooling_registry().select(config.pooling, where);
  scorer_registry().select(config.scorer, where);
  std::int64_t rows = source_length;
  for (const auto& [layer, width] : config.widths) {
    if (layer < 0 || layer >= config.layers)
      where.fail(fmt::format("widths: layer {} is not there; allowed: 0 to {}", layer, config.layers - 1));
    if (width < 1 || width > rows)
      where.fail(fmt::format("widths: layer {}: {} rows cannot be left of {}; allowed: 1 to {}", layer, width, rows, rows));
    check_pooling_support(*pooling.variant, {1, rows, config.layer.width, width, dtype}, device);
    rows = width;
  }
  check_attention_support(
      *attention.variant,
      {1, config.layer.heads, source_length, source_length, config.layer.width / config.layer.heads, false, false, dtype},
      device);
}

std::vector<std::int64_t> encoder_lengths(const EncoderConfig& config, std::int64_t length) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto found = config.widths.find(layer);
    if (found != config.widths.end()) length = std::min(length, found->second);
    lengths.push_back(length);
  }
  return lengths;
}

PoolingLayerImpl::PoolingLayerImpl(std::int64_t width, std::int64_t pooled_length, const Json& scorer, const Json& pooling)
    : pooled_length_(pooled_length), pooling_(make_pooling(pooling)) {
  const auto selection = scorer_registry().select(scorer);
  scorer_ = register_module("scorer", selection.variant->make(width, selection.options));
}

Encoded PoolingLayerImpl::forward(const Encoded& in) {
  if (in.memory.size(1) <= pooled_length_) return in;
  const auto pooled = pooling_->forward(in.memory, scorer_->forward(in.memory), pooled_length_, in.lengths);
  return {pooled.values, pooled_lengths(in.lengths, pooled_length_)};
}

EncoderLayerImpl::EncoderLayerImpl(const LayerConfig& config, std::shared_ptr<const AttentionOperator> attention) {
  attention_ = register_module("attention", SelfAttention(config.width, config.heads, std::move(attention)));
  feed_forward_ = register_module("feed_forward", FeedForward(config));
  attention_residual_ = register_module("attention_residual", Residual(config));
  feed_forward_residual_ = register_module("feed_forward_residual", Residual(config));
}

torch::Tensor EncoderLayerImpl::forward(const torch::Tensor& x, const AttentionMask& mask) {
  const auto attended =
      attention_residual_->forward(x, [&](const torch::Tensor& t) { return attention_->forward(t, mask); });
  return feed_forward_residual_->forward(attended, [&](const torch::Tensor& t) { return feed_forward_->forward(t); });
}

EncoderImpl::EncoderImpl(const EncoderConfig& config) {
  const auto attention = make_attention(config.attention);
  for (std::int64_t i = 0; i < config.layers; ++i) {
    layers_.push_back(register_module(fmt::format("layer{}", i), EncoderLayer(config.layer, attention)));
    if (const auto width = config.widths.find(i); width != config.widths.end())
      pooling_.emplace(i, register_module(fmt::format("pooling{}", i),
                                          PoolingLayer(config.layer.width, width->second, config.scorer, config.pooling)));
  }
  if (config.layer.pre_norm)
    final_norm_ = register_module("final_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.layer.width})));
}

Encoded EncoderImpl::forward(const torch::Tensor& x, const std::optional<torch::Tensor>& lengths) {
  Encoded encoded{x, lengths};
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    encoded.memory = layers_[i]->forward(encoded.memory, {.key_lengths = encoded.lengths});
    if (const auto pooling = pooling_.find(static_cast<std::int64_t>(i)); pooling != pooling_.end())
      encoded = pooling->second->forward(encoded);
  }
  if (final_norm_) encoded.memory = final_norm_->forward(encoded.memory);
  return encoded;
}

Cost encoder_cost(const EncoderConfig& config, std::int64_t batch, std::int64_t length, bool masked, at::ScalarType dtype) {
  const auto attention = attention_registry().select(config.attention);
  const auto pooling = pooling_registry().select(config.pooling);
  const auto scorer = scorer_registry().select(config.scorer);
  const bool scorer_learns = pooling.variant->make(pooling.options)->passes_score_gradient();
  const auto& layer = config.layer;
  Cost total;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const auto rows = batch * length;
    total += projection_cost(rows, layer.width, 4 * layer.width, dtype);
    total += projection_cost(rows, layer.width, 2 * layer.feed_forward, dtype);
    total += attention.variant->cost({batch, layer.heads, length, length, layer.width / layer.heads, false, masked, dtype},
                                     attention.options);
    const auto width = config.widths.find(i);
    if (width == config.widths.end() || width->second >= length) continue;
    auto scoring = scorer.variant->cost({batch, length, layer.width}, scorer.options);
    if (!scorer_learns) scoring.backward_flops = 0;
    total += scoring;
    total += pooling.variant->cost({batch, length, layer.width, width->second, dtype}, pooling.options);
    length = width->second;
  }
  return total;
}

Json encoder_backends(const EncoderConfig& config, const at::Device& device) {
  Json backends = {{"attention", make_attention(config.attention)->backend(device)}};
  if (!config.widths.empty()) backends["pooling"] = make_pooling(config.pooling)->backend(device);
  return backends;
}

}  // namespace transpool
