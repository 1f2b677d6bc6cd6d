#include "models/pooling_layer.h"

namespace transpool {

PoolingLayerImpl::PoolingLayerImpl(std::int64_t width, const Json& scorer, const Json& pooling, bool fuse) {
  const auto chosen_scorer = scorer_registry().select(scorer);
  const auto chosen_pooling = pooling_registry().select(pooling);
  scorer_ = register_module("scorer", chosen_scorer.variant->make(width, chosen_scorer.options));
  pooling_ = chosen_pooling.variant->make(chosen_pooling.options);
  if (fuse) fused_ = find_fused_pooling(chosen_scorer.variant->name, chosen_pooling.variant->name);
  if (fused_) run_fused_ = fused_->make(*scorer_, chosen_pooling.options);
}

ScoredPooled PoolingLayerImpl::forward(const ScorerInput& in, const torch::Tensor& x, std::int64_t k) {
  if (fused_ && in.x.is_same(x)) {
    const PoolingShape shape{x.size(0), x.size(1), x.size(2), k, x.scalar_type()};
    if (!fused_->backend(x.device(), shape, scorer_dtype(x)).empty()) return run_fused_(in, k);
  }
  auto scores = scorer_->forward(in);
  auto pooled = pooling_->forward(x, scores, k, in.lengths);
  return {std::move(pooled), std::move(scores)};
}

Json pooling_layer_backends(const Json& scorer, const Json& pooling, bool fuse, const at::Device& device,
                            const PoolingShape& shape, at::ScalarType precision) {
  const auto chosen = pooling_registry().select(pooling);
  const auto* fused =
      fuse ? find_fused_pooling(scorer_registry().select(scorer).variant->name, chosen.variant->name) : nullptr;
  const auto backend = fused ? fused->backend(device, shape, precision) : "";
  return {{"pooling", chosen.variant->make(chosen.options)->backend(device)},
          {"fused_pooling", backend.empty() ? "off" : backend}};
}

}  // namespace transpool
