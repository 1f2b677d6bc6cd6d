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

std::int64_t rows_after_pruner(const EncoderConfig& config, std::int64_t length) {
  return config.pruner ? std::min(length, config.pruner->widths.rbegin()->second) : length;
}

/// The pruner's layers, without the pooling that follows them.
EncoderConfig trunk_of(EncoderConfig pruner) {
  pruner.widths.clear();
  return pruner;
}

/// Scoring rows of width `scored` and pooling rows of width `pooled`.
Cost pooling_cost(const EncoderConfig& config, std::int64_t scored, PoolingShape shape) {
  const auto pooling = pooling_registry().select(config.pooling);
  const auto scorer = scorer_registry().select(config.scorer);
  auto cost = scorer.variant->cost({shape.batch, shape.length, scored}, scorer.options);
  if (!pooling.variant->make(pooling.options)->passes_score_gradient()) cost.backward_flops = 0;
  cost += pooling.variant->cost(shape, pooling.options);
  return cost;
}

Cost pruner_cost(const EncoderConfig& pruner, std::int64_t width, PoolingShape shape, bool masked, at::DeviceType device) {
  auto cost = encoder_cost(trunk_of(pruner), shape.batch, shape.length, masked, shape.dtype, device);
  if (pruner.layer.width != width)
    cost += projection_cost(shape.batch * shape.length, width, pruner.layer.width, shape.dtype);
  if (!make_pooling(pruner.pooling)->passes_score_gradient()) {
    cost.backward_flops = 0;
    cost.backward_differences.clear();
  }
  cost += pooling_cost(pruner, pruner.layer.width, shape);
  return cost;
}

void check_pruner(const EncoderConfig& pruner, std::int64_t source_length, std::int64_t width, const std::string& device,
                  at::ScalarType dtype, const Where& where) {
  if (pruner.pruner) where.fail("pruner: has a pruner of its own; allowed: none");
  if (pruner.widths.size() != 1 || pruner.widths.begin()->first != pruner.layers - 1)
    where.fail(fmt::format("pruner: widths: allowed: rows after its last layer alone, {{\"{}\": rows}}", pruner.layers - 1));
  check_encoder(pruner, source_length, device, dtype, where);
  const auto pooling = pooling_registry().select(pruner.pooling, where);
  check_pooling_support(*pooling.variant, {1, source_length, width, pruner.widths.begin()->second, dtype}, device);
}

/// Scores the rows `seen` and pools those of `in` by it; leaves as they are what is short enough.
Encoded pool(PoolingLayer& layer, const Encoded& in, const torch::Tensor& seen, std::int64_t k) {
  if (in.memory.size(1) <= k) return in;
  const auto pooled = layer->forward({seen, in.lengths, in.tokens}, in.memory, k).pooled;
  Encoded out{pooled.values, pooled_lengths(in.lengths, k)};
  if (in.tokens) {
    const auto& positions = pooled.positions;
    out.tokens = in.tokens->gather(1, positions.clamp_min(0)).masked_fill(positions < 0, -1);
  }
  return out;
}

}  // namespace

Json to_json(const EncoderConfig& config) {
  Json widths = Json::object();
  for (const auto& [layer, width] : config.widths) widths[std::to_string(layer)] = width;
  Json json = {{"layers", config.layers},
               {"width", config.layer.width},
               {"heads", config.layer.heads},
               {"feed_forward", config.layer.feed_forward},
               {"norm", config.layer.pre_norm ? "pre" : "post"},
               {"activation", config.layer.activation},
               {"dropout", config.layer.dropout},
               {"attention", config.attention},
               {"pooling", config.pooling},
               {"scorer", config.scorer},
               {"fused_pooling", config.fuse_pooling ? "auto" : "off"},
               {"widths", widths}};
  if (config.pruner) json["pruner"] = to_json(*config.pruner);
  return json;
}

EncoderConfig encoder_config_from_json(const Json& json, const Where& where) {
  const Options options(
      {{.name = "layers", .type = OptionType::integer, .minimum = 1},
       {.name = "width", .type = OptionType::integer, .minimum = 1},
       {.name = "heads", .type = OptionType::integer, .minimum = 1},
       {.name = "feed_forward", .type = OptionType::integer, .minimum = 1},
       {.name = "norm", .type = OptionType::choice, .choices = {"pre", "post"}},
       {.name = "activation", .type = OptionType::choice, .choices = {"relu", "gelu"}},
       {.name = "dropout", .type = OptionType::real, .minimum = 0, .maximum = 0.999},
       {.name = "attention", .type = OptionType::variant},
       {.name = "pooling", .type = OptionType::variant},
       {.name = "scorer", .type = OptionType::variant},
       {.name = "fused_pooling", .type = OptionType::choice, .fallback = "auto", .choices = {"auto", "off"}},
       {.name = "widths", .type = OptionType::object},
       {.name = "pruner", .type = OptionType::object, .optional = true}},
      json, "key of an encoder", where);
  EncoderConfig config;
  config.layers = options.integer("layers");
  config.layer = {options.integer("width"),      options.integer("heads"),   options.integer("feed_forward"),
                  options.text("norm") == "pre", options.text("activation"), options.real("dropout")};
  config.attention = options.raw("attention");
  config.pooling = options.raw("pooling");
  config.scorer = options.raw("scorer");
  config.fuse_pooling = options.text("fused_pooling") == "auto";
  for (const auto& item : options.raw("widths").items())
    config.widths[std::stoll(item.key())] = item.value().get<std::int64_t>();
  if (options.has("pruner"))
    config.pruner = std::make_shared<const EncoderConfig>(encoder_config_from_json(options.raw("pruner"), where / "pruner"));
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
  if (config.pruner) check_pruner(*config.pruner, source_length, config.layer.width, device, dtype, where);
  const auto first = rows_after_pruner(config, source_length);
  std::int64_t rows = first;
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
      {1, config.layer.heads, first, first, config.layer.width / config.layer.heads, false, false, dtype}, device);
}

std::vector<std::int64_t> encoder_lengths(const EncoderConfig& config, std::int64_t length) {
  std::vector<std::int64_t> lengths;
  length = rows_after_pruner(config, length);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto found = config.widths.find(layer);
    if (found != config.widths.end()) length = std::min(length, found->second);
    lengths.push_back(length);
  }
  return lengths;
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
  if (config.pruner) pruner_ = register_module("pruner", std::make_shared<PrunerImpl>(*config.pruner, config.layer.width));
  const auto attention = make_attention(config.attention);
  for (std::int64_t i = 0; i < config.layers; ++i) {
    layers_.push_back(register_module(fmt::format("layer{}", i), EncoderLayer(config.layer, attention)));
    if (const auto width = config.widths.find(i); width != config.widths.end())
      pooling_.emplace(i, std::pair(width->second, register_module(fmt::format("pooling{}", i),
                                                                   PoolingLayer(config.layer.width, config.scorer,
                                                                                config.pooling, config.fuse_pooling))));
  }
  if (config.layer.pre_norm)
    final_norm_ = register_module("final_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.layer.width})));
}

Encoded EncoderImpl::forward(const torch::Tensor& x, const std::optional<torch::Tensor>& lengths,
                             const std::optional<torch::Tensor>& tokens) {
  Encoded encoded{x, lengths, tokens};
  if (pruner_) encoded = pruner_->forward(encoded);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    encoded.memory = layers_[i]->forward(encoded.memory, {.key_lengths = encoded.lengths});
    if (const auto pooling = pooling_.find(static_cast<std::int64_t>(i)); pooling != pooling_.end())
      encoded = pool(pooling->second.second, encoded, encoded.memory, pooling->second.first);
  }
  if (final_norm_) encoded.memory = final_norm_->forward(encoded.memory);
  return encoded;
}

PrunerImpl::PrunerImpl(const EncoderConfig& config, std::int64_t width) : pooled_length_(config.widths.rbegin()->second) {
  if (config.layer.width != width) input_ = register_module("input", torch::nn::Linear(width, config.layer.width));
  trunk_ = register_module("trunk", Encoder(trunk_of(config)));
  pooling_ = register_module("pooling", PoolingLayer(config.layer.width, config.scorer, config.pooling));
}

Encoded PrunerImpl::forward(const Encoded& in) {
  if (in.memory.size(1) <= pooled_length_) return in;
  const auto read = trunk_->forward(input_ ? input_->forward(in.memory) : in.memory, in.lengths);
  return pool(pooling_, in, read.memory, pooled_length_);
}

Cost encoder_cost(const EncoderConfig& config, std::int64_t batch, std::int64_t length, bool masked, at::ScalarType dtype,
                  at::DeviceType device) {
  const auto attention = attention_registry().select(config.attention);
  const auto& layer = config.layer;
  Cost total;
  if (const auto left = rows_after_pruner(config, length); left < length) {
    total += pruner_cost(*config.pruner, layer.width, {batch, length, layer.width, left, dtype}, masked, device);
    length = left;
  }
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const auto rows = batch * length;
    total += projection_cost(rows, layer.width, 4 * layer.width, dtype);
    total += projection_cost(rows, layer.width, 2 * layer.feed_forward, dtype);
    total += attention.variant->cost(
        {batch, layer.heads, length, length, layer.width / layer.heads, false, masked, dtype, device}, attention.options);
    const auto width = config.widths.find(i);
    if (width == config.widths.end() || width->second >= length) continue;
    total += pooling_cost(config, layer.width, {batch, length, layer.width, width->second, dtype});
    length = width->second;
  }
  return total;
}

Json encoder_backends(const EncoderConfig& config, const at::Device& device, std::int64_t length, at::ScalarType dtype) {
  Json backends = {{"attention", make_attention(config.attention)->backend(device)}};
  if (config.pruner) {
    backends["pruner"] = encoder_backends(*config.pruner, device, length, dtype);
    backends["pruner"]["fused_pooling"] = "off";  // it scores other rows than it pools
    length = rows_after_pruner(config, length);
  }
  const auto rows_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat;
  std::string fused;
  for (const auto& [layer, width] : config.widths) {
    const auto found = pooling_layer_backends(config.scorer, config.pooling, config.fuse_pooling, device,
                                              {1, length, config.layer.width, width, rows_dtype}, dtype);
    backends["pooling"] = found["pooling"];
    if (width >= length) continue;
    if (fused != "off") fused = found["fused_pooling"];
    length = width;
  }
  if (!fused.empty()) backends["fused_pooling"] = fused;
  return backends;
}

}  // namespace transpool
