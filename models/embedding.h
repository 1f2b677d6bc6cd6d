#pragma once

#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>

namespace transpool {

/// Sinusoidal positions (n, d) from `first` on (arXiv 1706.03762, section 3.5).
torch::Tensor sinusoidal_positions(std::int64_t first, std::int64_t n, std::int64_t width,
                                   const torch::TensorOptions& options);

/// Token embeddings scaled by sqrt(d) plus sinusoidal positions; the same matrix gives the output logits.
class EmbeddingImpl : public torch::nn::Module {
 public:
  EmbeddingImpl(std::int64_t vocabulary, std::int64_t width, double dropout);

  /// ids (B, n) int64 -> (B, n, d); positions count from `first`.
  torch::Tensor forward(const torch::Tensor& ids, std::int64_t first = 0);

  /// x (B, n, d) -> (B, n, V).
  torch::Tensor logits(const torch::Tensor& x);

 private:
  torch::Tensor positions_from(std::int64_t first, std::int64_t n);

  std::int64_t width_;
  torch::nn::Embedding tokens_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
  torch::Tensor positions_;  // a cache that grows; no parameter
};
TORCH_MODULE(Embedding);

}  // namespace transpool
