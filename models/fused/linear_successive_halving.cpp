#include "models/fused_pooling.h"
#include "operators/pooling/successive_halving_kernel.h"
#include "operators/pooling/successive_halving_layer.h"

namespace transpool {
namespace {

constexpr double floor_of_scores = 1e-5;  // see score_from_logits

FusedPooling make(const Scorer& scorer, const Options& pooling) {
  const auto parameters = scorer.named_parameters();
  return [weight = parameters["linear.weight"], bias = parameters["linear.bias"], pooling](const ScorerInput& in,
                                                                                           std::int64_t k) -> ScoredPooled {
    const LinearScores linear{weight.flatten(), bias, floor_of_scores, scorer_dtype(in.x)};
    auto [pooled, scores] = successive_halving_layer(in.x, linear, k, in.lengths, tournament_options(pooling),
                                                     skipped_weight(pooling, in.x.scalar_type()));
    return {std::move(pooled), std::move(scores)};
  };
}

const RegisterFusedPooling registration({
    "linear",
    "successive_halving",
    make,
    [](const at::Device& device, const PoolingShape& shape, at::ScalarType precision) {
      const bool runs =
          has_successive_halving_layer(device, shape.length, shape.width, shape.pooled_length, shape.dtype, precision);
      return std::string(runs ? "cuda" : "");
    },
});

}  // namespace
}  // namespace transpool
