#pragma once

#include "models/decoder.h"
#include "models/embedding.h"

namespace transpool {

/// An encoder-decoder Transformer whose source, target and output embeddings are one matrix.
struct ModelConfig {
  EncoderConfig encoder;
  DecoderConfig decoder;
  std::int64_t vocabulary = 32000;
};

Json to_json(const ModelConfig& config);
ModelConfig model_config_from_json(const Json& json, const Where& where);

class Seq2SeqImpl : public torch::nn::Module {
 public:
  explicit Seq2SeqImpl(const ModelConfig& config);

  const ModelConfig& config() const { return config_; }

  /// source (B, n) int64, lengths int64 (B,) or none where nothing is padded.
  Encoded encode(const torch::Tensor& source, const std::optional<torch::Tensor>& lengths);

  /// Logits (B, t, V) for target_in (B, t) int64 under teacher forcing.
  torch::Tensor forward(const torch::Tensor& source, const std::optional<torch::Tensor>& lengths,
                        const torch::Tensor& target_in);

  DecoderState start(const Encoded& encoded, std::int64_t limit) { return decoder_->start(encoded, limit); }

  /// Logits (B, V) after the tokens (B,) of the current step.
  torch::Tensor forward_step(const torch::Tensor& tokens, DecoderState& state);

  std::int64_t parameter_count() const;

 private:
  ModelConfig config_;
  Embedding embedding_{nullptr};
  Encoder encoder_{nullptr};
  Decoder decoder_{nullptr};
};
TORCH_MODULE(Seq2Seq);

/// Cost of one teacher-forced pass over (batch, source) and (batch, target) tokens.
Cost model_cost(const ModelConfig& config, std::int64_t batch, std::int64_t source, std::int64_t target, bool masked,
                at::ScalarType dtype, at::DeviceType device = at::kCPU);

}  // namespace transpool
