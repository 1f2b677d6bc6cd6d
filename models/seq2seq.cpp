#include "models/seq2seq.h"

namespace transpool {

Json to_json(const ModelConfig& config) {
  return Json{
      {"encoder", to_json(config.encoder)}, {"decoder_layers", config.decoder.layers}, {"vocabulary", config.vocabulary}};
}

ModelConfig model_config_from_json(const Json& json, const Where& where) {
  const Options options({{.name = "encoder", .type = OptionType::object},
                         {.name = "decoder_layers", .type = OptionType::integer, .minimum = 1},
                         {.name = "vocabulary", .type = OptionType::integer, .minimum = 4}},
                        json, "key of a model", where);
  ModelConfig config;
  config.encoder = encoder_config_from_json(options.raw("encoder"), where / "encoder");
  config.decoder = {config.encoder.layer, options.integer("decoder_layers")};
  config.vocabulary = options.integer("vocabulary");
  return config;
}

Seq2SeqImpl::Seq2SeqImpl(const ModelConfig& config) : config_(config) {
  embedding_ =
      register_module("embedding", Embedding(config.vocabulary, config.encoder.layer.width, config.encoder.layer.dropout));
  encoder_ = register_module("encoder", Encoder(config.encoder));
  decoder_ = register_module("decoder", Decoder(config.decoder));
}

Encoded Seq2SeqImpl::encode(const torch::Tensor& source, const std::optional<torch::Tensor>& lengths) {
  return encoder_->forward(embedding_->forward(source), lengths, source);
}

torch::Tensor Seq2SeqImpl::forward(const torch::Tensor& source, const std::optional<torch::Tensor>& lengths,
                                   const torch::Tensor& target_in) {
  return embedding_->logits(decoder_->forward(embedding_->forward(target_in), encode(source, lengths)));
}

torch::Tensor Seq2SeqImpl::forward_step(const torch::Tensor& tokens, DecoderState& state) {
  const auto embedded = embedding_->forward(tokens.unsqueeze(1), state.step);
  return embedding_->logits(decoder_->forward_step(embedded, state)).squeeze(1);
}

std::int64_t Seq2SeqImpl::parameter_count() const {
  std::int64_t count = 0;
  for (const auto& parameter : parameters()) count += parameter.numel();
  return count;
}

Cost model_cost(const ModelConfig& config, std::int64_t batch, std::int64_t source, std::int64_t target, bool masked,
                at::ScalarType dtype, at::DeviceType device) {
  auto cost = encoder_cost(config.encoder, batch, source, masked, dtype, device);
  const auto memory = encoder_lengths(config.encoder, source).back();
  cost += decoder_cost(config.decoder, batch, target, memory, masked, dtype);
  cost += projection_cost(batch * target, config.encoder.layer.width, config.vocabulary, dtype);
  return cost;
}

}  // namespace transpool
