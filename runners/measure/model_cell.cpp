#include "runners/measure/model_cell.h"

#include "models/encoders/encoder_variant.h"
#include "models/generation.h"
#include "runners/measure/device.h"

#include <ATen/autocast_mode.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/utils/clip_grad.h>

namespace transpool {

ModelConfig model_config(const Cell& cell, std::int64_t vocabulary) {
  const auto& values = cell.values;
  EncoderRequest request;
  request.base.layer = {values.integer("width"),      values.integer("heads"),   values.integer("feed_forward"),
                        values.text("norm") == "pre", values.text("activation"), values.real("dropout")};
  request.base.layers = values.json().contains("layers") ? values.integer("layers") : 1;
  request.base.attention = values.raw("attention");
  request.base.pooling = values.raw("pooling");
  request.base.scorer = values.raw("scorer");
  request.base.fuse_pooling = values.text("fused_pooling") == "auto";
  request.source_length = values.integer("source_length");
  request.pooled_length = values.integer("pooled_length");
  request.chunk = values.integer("chunk");
  const auto encoder = encoder_registry().select(values.raw("encoder"));
  ModelConfig config;
  config.encoder = encoder.variant->configure(request, encoder.options);
  config.decoder = {config.encoder.layer, values.json().contains("decoder_layers") ? values.integer("decoder_layers") : 1};
  config.vocabulary = vocabulary;
  return config;
}

void check_model_cell(const Cell& cell, const Where& where) {
  const auto& values = cell.values;
  const auto pooled = values.integer("pooled_length");
  const auto config = [&] {
    try {
      return model_config(cell, 4);
    } catch (const UsageError& error) {
      where.fail(error.what());
    }
  }();
  // Only an encoder that pools reads pooled_length.
  if (config.encoder.pools() && pooled > values.integer("source_length"))
    where.fail(fmt::format("pooled_length: {} is out of range; allowed: 1 to source_length = {}", pooled,
                           values.integer("source_length")));
  check_encoder(config.encoder, values.integer("source_length"), cell.device, dtype_from_name(values.text("dtype")), where);
}

Cost estimate_model_cell(const Cell& cell) {
  const auto& values = cell.values;
  const auto& json = values.json();
  const auto config = model_config(cell, json.contains("vocabulary") ? values.integer("vocabulary") : 32000);
  const auto dtype = dtype_from_name(values.text("dtype"));
  const auto batch = values.integer("batch");
  const auto source = values.integer("source_length");
  if (!json.contains("target_length")) return encoder_cost(config.encoder, batch, source, false, dtype);
  return model_cost(config, batch, source, values.integer("target_length"), false, dtype);
}

Precision::Precision(const at::Device& device, at::ScalarType dtype)
    : device_(device.type()), active_(dtype == at::kHalf || dtype == at::kBFloat16) {
  if (!active_) return;
  at::autocast::set_autocast_enabled(device_, true);
  at::autocast::set_autocast_dtype(device_, dtype);
}

Precision::~Precision() {
  if (!active_) return;
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, false);
}

at::ScalarType parameter_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

TokenBatch draw_tokens(std::int64_t batch, std::int64_t source, std::int64_t target, std::int64_t vocabulary,
                       bool random_lengths, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const auto lowest = std::min<std::int64_t>(4, vocabulary - 1);
  TokenBatch tokens;
  tokens.source = at::randint(lowest, vocabulary, {batch, source}, options);
  tokens.target_in = at::randint(lowest, vocabulary, {batch, target}, options);
  tokens.target_out = at::randint(lowest, vocabulary, {batch, target}, options);
  if (random_lengths) tokens.lengths = at::randint((source + 1) / 2, source + 1, {batch}, options);
  return tokens;
}

torch::Tensor token_loss(const torch::Tensor& logits, const torch::Tensor& target_out) {
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1).to(parameter_dtype(logits.scalar_type())),
                                              target_out.flatten(),
                                              torch::nn::functional::CrossEntropyFuncOptions().ignore_index(0));
}

namespace {

struct ModelPass {
  Seq2Seq model;
  std::shared_ptr<AdamW> optimizer;
  at::Device device;
  at::ScalarType dtype;
  std::int64_t batch, source, target;
  bool random_lengths;
  TokenBatch tokens;

  void draw() { tokens = draw_tokens(batch, source, target, model->config().vocabulary, random_lengths, device); }
};

std::shared_ptr<ModelPass> make_pass(const Cell& cell, const Seq2Seq& model, std::shared_ptr<AdamW> optimizer,
                                     bool random_lengths) {
  const auto& values = cell.values;
  auto pass = std::make_shared<ModelPass>(ModelPass{model,
                                                    std::move(optimizer),
                                                    device_from_name(cell.device),
                                                    dtype_from_name(values.text("dtype")),
                                                    values.integer("batch"),
                                                    values.integer("source_length"),
                                                    values.integer("target_length"),
                                                    random_lengths,
                                                    {}});
  pass->draw();
  return pass;
}

}  // namespace

Workload training_workload(const Cell& cell, Seq2Seq model, std::shared_ptr<AdamW> optimizer, bool random_lengths) {
  auto pass = make_pass(cell, model, std::move(optimizer), random_lengths);
  Workload workload;
  workload.what = "one training step";
  workload.redraw = [pass] { pass->draw(); };
  workload.run = [pass] {
    pass->model->train();
    pass->optimizer->zero_grad();
    torch::Tensor loss;
    {
      const Precision precision(pass->device, pass->dtype);
      loss = token_loss(pass->model->forward(pass->tokens.source, pass->tokens.lengths, pass->tokens.target_in),
                        pass->tokens.target_out);
    }
    loss.backward();
    pass->optimizer->step();
  };
  workload.cost =
      model_cost(model->config(), pass->batch, pass->source, pass->target, random_lengths, pass->dtype, pass->device.type());
  workload.backward = true;
  return workload;
}

Workload generation_workload(const Cell& cell, Seq2Seq model, bool random_lengths) {
  auto pass = make_pass(cell, model, nullptr, random_lengths);
  Workload workload;
  workload.what = "encoding and greedy generation of target_length tokens";
  workload.redraw = [pass] { pass->draw(); };
  workload.run = [pass] {
    const torch::NoGradGuard no_gradient;
    const Precision precision(pass->device, pass->dtype);
    pass->model->eval();
    generate_greedy(pass->model, pass->tokens.source, pass->tokens.lengths,
                    {.max_length = pass->target, .stop_early = false});
  };
  const auto& config = model->config();
  workload.cost = encoder_cost(config.encoder, pass->batch, pass->source, random_lengths, pass->dtype, pass->device.type());
  const auto memory = encoder_lengths(config.encoder, pass->source).back();
  workload.cost += generation_cost(config.decoder, pass->batch, pass->target, memory, random_lengths, pass->dtype);
  workload.cost += projection_cost(pass->batch * pass->target, config.encoder.layer.width, config.vocabulary, pass->dtype);
  workload.backward = false;
  return workload;
}

}  // namespace transpool
