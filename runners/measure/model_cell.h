#pragma once

#include "models/seq2seq.h"
#include "runners/measure/level.h"

#include "runners/train/adamw.h"

namespace transpool {

/// The model that a cell describes: its encoder by name, dimensions by its settings. `vocabulary` as given.
ModelConfig model_config(const Cell& cell, std::int64_t vocabulary);

/// Throws UsageError or Unsupported where check_encoder does; builds nothing.
void check_model_cell(const Cell& cell, const Where& where);

/// Declared cost of one training pass (an encoder pass, where the level has no decoder); random tokens' vocabulary.
Cost estimate_model_cell(const Cell& cell);

/// Half types run under autocast while one of these lives; float32 and float64 as they are.
class Precision {
 public:
  Precision(const at::Device& device, at::ScalarType dtype);
  ~Precision();
  Precision(const Precision&) = delete;
  Precision& operator=(const Precision&) = delete;

 private:
  at::DeviceType device_;
  bool active_;
};

/// The dtype of parameters: float64 as asked, else float32.
at::ScalarType parameter_dtype(at::ScalarType dtype);

/// Random tokens of a cell's shapes, no id below 4.
struct TokenBatch {
  torch::Tensor source, target_in, target_out;
  std::optional<torch::Tensor> lengths;
};
TokenBatch draw_tokens(std::int64_t batch, std::int64_t source, std::int64_t target, std::int64_t vocabulary,
                       bool random_lengths, const at::Device& device);

/// One update on fixed-shape random tokens: forward, loss, backward, AdamW.
Workload training_workload(const Cell& cell, Seq2Seq model, std::shared_ptr<AdamW> optimizer, bool random_lengths);

/// Encoding and greedy generation of target_length tokens, no early stop.
Workload generation_workload(const Cell& cell, Seq2Seq model, bool random_lengths);

/// Mean token cross-entropy; pad (0) is ignored.
torch::Tensor token_loss(const torch::Tensor& logits, const torch::Tensor& target_out);

}  // namespace transpool
