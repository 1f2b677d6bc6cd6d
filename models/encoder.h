#pragma once

#include "models/layer.h"
#include "models/multi_head_attention.h"
#include "models/pooling_layer.h"

#include <map>

namespace transpool {

/// An encoder by configuration: layers, an attention operator, a pooling operator and a width schedule; on request a pruner
/// in front.
struct EncoderConfig {
  LayerConfig layer;
  std::int64_t layers = 2;
  Json attention = "full";                      ///< variant of the attention registry
  Json pooling = "successive_halving";          ///< variant of the pooling registry
  Json scorer = "linear";                       ///< variant of the scorer registry
  bool fuse_pooling = true;                     ///< scorer and pooling operator as one where they have a fused form
  std::map<std::int64_t, std::int64_t> widths;  ///< width schedule: layer -> rows left after it; empty: no pooling
  /// A small encoder that reads the source first; its pooling operator, led by its scorer, then picks rows of the embedded
  /// source for this encoder (DoT, arXiv 2106.00479). Its widths say how many, after its last layer; null: none.
  std::shared_ptr<const EncoderConfig> pruner = {};

  bool pools() const { return pruner || !widths.empty(); }
};

Json to_json(const EncoderConfig& config);
EncoderConfig encoder_config_from_json(const Json& json, const Where& where);

/// Throws UsageError (a layer that is not there, a width that grows, unknown variants, heads) or Unsupported, before
/// anything is built.
void check_encoder(const EncoderConfig& config, std::int64_t source_length, const std::string& device, at::ScalarType dtype,
                   const Where& where = {});

/// Rows after each layer for a source of `length` rows.
std::vector<std::int64_t> encoder_lengths(const EncoderConfig& config, std::int64_t length);

/// What the decoder sees: rows and, where the source had lengths, how many of them are valid.
struct Encoded {
  torch::Tensor memory;                  ///< (B, m, d)
  std::optional<torch::Tensor> lengths;  ///< int64 (B,)
  /// int64 (B, m): the source token each row began as, by the row that weighs most where rows were mixed; -1: padding.
  std::optional<torch::Tensor> tokens = {};
};

class EncoderLayerImpl : public torch::nn::Module {
 public:
  EncoderLayerImpl(const LayerConfig& config, std::shared_ptr<const AttentionOperator> attention);
  torch::Tensor forward(const torch::Tensor& x, const AttentionMask& mask);

 private:
  SelfAttention attention_{nullptr};
  FeedForward feed_forward_{nullptr};
  Residual attention_residual_{nullptr};
  Residual feed_forward_residual_{nullptr};
};
TORCH_MODULE(EncoderLayer);

class PrunerImpl;

class EncoderImpl : public torch::nn::Module {
 public:
  explicit EncoderImpl(const EncoderConfig& config);

  /// x (B, n, d) embedded source -> memory (B, m, d), m the last width of the schedule (n, where that is shorter). tokens
  /// (B, n) int64: the source itself, for scorers that look at it.
  Encoded forward(const torch::Tensor& x, const std::optional<torch::Tensor>& lengths,
                  const std::optional<torch::Tensor>& tokens = std::nullopt);

 private:
  std::shared_ptr<PrunerImpl> pruner_;
  std::vector<EncoderLayer> layers_;
  std::map<std::int64_t, std::pair<std::int64_t, PoolingLayer>> pooling_;  // after a layer: rows left, and the layer
  torch::nn::LayerNorm final_norm_{nullptr};                               // pre-norm only
};
TORCH_MODULE(Encoder);

/// The pruner of an encoder of width `width`: encodes the source, scores its rows, and pools the embedded source by that.
class PrunerImpl : public torch::nn::Module {
 public:
  PrunerImpl(const EncoderConfig& config, std::int64_t width);
  Encoded forward(const Encoded& in);

 private:
  std::int64_t pooled_length_;
  torch::nn::Linear input_{nullptr};  // only where the pruner has another width
  Encoder trunk_{nullptr};
  PoolingLayer pooling_{nullptr};
};

/// Cost of one forward and backward pass over (batch, length) rows that carry a gradient. What is executed for it may differ
/// by device.
Cost encoder_cost(const EncoderConfig& config, std::int64_t batch, std::int64_t length, bool masked, at::ScalarType dtype,
                  at::DeviceType device = at::kCPU);

/// "sdpa", "cpu", "cuda" ...: what runs in this encoder on that device, by part, for a source of `length` rows; models run
/// half dtypes under autocast. "fused_pooling" is "off" where any pooling layer runs scorer and operator in turn.
Json encoder_backends(const EncoderConfig& config, const at::Device& device, std::int64_t length, at::ScalarType dtype);

}  // namespace transpool
