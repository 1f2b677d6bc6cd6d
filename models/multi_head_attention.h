#pragma once

#include "operators/attention/attention.h"

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

namespace transpool {

/// (B, n, h * e) -> (B, h, n, e) by views alone.
torch::Tensor split_heads(const torch::Tensor& x, std::int64_t heads);

/// (B, h, n, e) -> (B, n, h * e).
torch::Tensor merge_heads(const torch::Tensor& x);

/// Self-attention with an exchangeable attention operator between its projections.
class SelfAttentionImpl : public torch::nn::Module {
 public:
  /// Throws UsageError unless `heads` divides `width`.
  SelfAttentionImpl(std::int64_t width, std::int64_t heads, std::shared_ptr<const AttentionOperator> attention);

  /// x (B, n, d) -> (B, n, d).
  torch::Tensor forward(const torch::Tensor& x, const AttentionMask& mask);

  /// One position x (B, 1, d) against the keys and values of this and all earlier ones, which are written into `keys` and
  /// `values` (B, h, limit, e) at place `step`.
  torch::Tensor forward_step(const torch::Tensor& x, torch::Tensor& keys, torch::Tensor& values, std::int64_t step);

 private:
  std::int64_t heads_;
  std::shared_ptr<const AttentionOperator> attention_;
  torch::nn::Linear input_{nullptr};  // q, k and v in one product
  torch::nn::Linear output_{nullptr};
};
TORCH_MODULE(SelfAttention);

/// Attention of a decoder to the encoder's output, its memory.
class CrossAttentionImpl : public torch::nn::Module {
 public:
  CrossAttentionImpl(std::int64_t width, std::int64_t heads);

  /// Keys and values (B, h, m, e) of a memory (B, m, d).
  std::pair<torch::Tensor, torch::Tensor> project_memory(const torch::Tensor& memory);

  /// x (B, n, d) -> (B, n, d).
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& keys, const torch::Tensor& values,
                        const AttentionMask& mask);

 private:
  std::int64_t heads_;
  torch::nn::Linear query_{nullptr};
  torch::nn::Linear memory_{nullptr};  // k and v in one product
  torch::nn::Linear output_{nullptr};
};
TORCH_MODULE(CrossAttention);

/// Throws UsageError unless `heads` divides `width`.
void check_heads(std::int64_t width, std::int64_t heads);

/// Linear layers only: `rows` rows of width `in` to `out` columns, all with gradients; the results are kept for backward.
Cost projection_cost(std::int64_t rows, std::int64_t in, std::int64_t out, at::ScalarType dtype);

}  // namespace transpool
