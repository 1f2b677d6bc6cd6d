#pragma once

#include "models/fused_pooling.h"

#include <torch/nn/pimpl.h>

namespace transpool {

/// Scores rows and pools them: one layer of a width schedule.
class PoolingLayerImpl : public torch::nn::Module {
 public:
  /// Variants of the scorer and the pooling registry. `fuse`: as one, on devices and for rows where the two have a fused
  /// form.
  PoolingLayerImpl(std::int64_t width, const Json& scorer, const Json& pooling, bool fuse = true);

  /// Pools in.x to k rows.
  ScoredPooled forward(const ScorerInput& in, std::int64_t k) { return forward(in, in.x, k); }

  /// Scores in.x (B, n, width) and pools the rows x (B, n, d) by it.
  ScoredPooled forward(const ScorerInput& in, const torch::Tensor& x, std::int64_t k);

  Scorer& scorer() { return *scorer_; }
  const PoolingOperator& pooling() const { return *pooling_; }

 private:
  std::shared_ptr<Scorer> scorer_;
  std::shared_ptr<const PoolingOperator> pooling_;
  const FusedPoolingVariant* fused_ = nullptr;
  FusedPooling run_fused_;
};
TORCH_MODULE(PoolingLayer);

/// What pools rows of that shape on that device in a pooling layer: {"pooling": "cuda", "fused_pooling": "cuda"}; the latter
/// is "off" where scorer and operator run in turn. `precision`: see FusedPoolingVariant::backend.
Json pooling_layer_backends(const Json& scorer, const Json& pooling, bool fuse, const at::Device& device,
                            const PoolingShape& shape, at::ScalarType precision);

}  // namespace transpool
