#pragma once

#include "models/encoder.h"

namespace transpool {

struct DecoderConfig {
  LayerConfig layer;
  std::int64_t layers = 2;
};

/// Keys and values of one decoder layer during generation.
struct DecoderLayerState {
  torch::Tensor memory_keys, memory_values;  ///< (B, h, m, e)
  torch::Tensor keys, values;                ///< (B, h, limit, e), filled up to the current step
};

struct DecoderState {
  std::vector<DecoderLayerState> layers;
  std::optional<torch::Tensor> memory_lengths;
  std::int64_t step = 0;
};

class DecoderLayerImpl : public torch::nn::Module {
 public:
  explicit DecoderLayerImpl(const LayerConfig& config);
  torch::Tensor forward(const torch::Tensor& x, const Encoded& encoded);
  torch::Tensor forward_step(const torch::Tensor& x, DecoderLayerState& state, const AttentionMask& memory_mask,
                             std::int64_t step);
  std::pair<torch::Tensor, torch::Tensor> project_memory(const torch::Tensor& memory) {
    return cross_attention_->project_memory(memory);
  }

 private:
  SelfAttention self_attention_{nullptr};
  CrossAttention cross_attention_{nullptr};
  FeedForward feed_forward_{nullptr};
  Residual self_residual_{nullptr}, cross_residual_{nullptr}, feed_forward_residual_{nullptr};
};
TORCH_MODULE(DecoderLayer);

/// Causal self-attention and cross-attention to the encoder's memory.
class DecoderImpl : public torch::nn::Module {
 public:
  explicit DecoderImpl(const DecoderConfig& config);

  /// x (B, t, d) embedded target -> (B, t, d).
  torch::Tensor forward(const torch::Tensor& x, const Encoded& encoded);

  /// Projects the memory once and makes room for `limit` steps.
  DecoderState start(const Encoded& encoded, std::int64_t limit);

  /// x (B, 1, d): the embedded token of the state's current step -> (B, 1, d). Advances the state.
  torch::Tensor forward_step(const torch::Tensor& x, DecoderState& state);

 private:
  std::vector<DecoderLayer> layers_;
  torch::nn::LayerNorm final_norm_{nullptr};  // pre-norm only
};
TORCH_MODULE(Decoder);

/// Cost of a teacher-forced pass of `target` rows over a memory of `memory` rows that carry a gradient.
Cost decoder_cost(const DecoderConfig& config, std::int64_t batch, std::int64_t target, std::int64_t memory, bool masked,
                  at::ScalarType dtype);

/// Cost of generating `steps` tokens one by one, memory projections included; forward only.
Cost generation_cost(const DecoderConfig& config, std::int64_t batch, std::int64_t steps, std::int64_t memory, bool masked,
                     at::ScalarType dtype);

}  // namespace transpool
