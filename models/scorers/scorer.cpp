#include "models/scorers/scorer.h"

#include <ATen/autocast_mode.h>

namespace transpool {

Registry<ScorerVariant>& scorer_registry() {
  static Registry<ScorerVariant> registry("scorer", "scorer");
  return registry;
}

torch::Tensor score_from_logits(const torch::Tensor& logits) { return logits.to(torch::kFloat).sigmoid() + 1e-5; }

at::ScalarType scorer_dtype(const torch::Tensor& x) {
  const auto device = x.device().type();
  const bool cast = at::autocast::is_autocast_enabled(device) && x.scalar_type() != at::kDouble;
  return cast ? at::autocast::get_autocast_dtype(device) : x.scalar_type();
}

}  // namespace transpool
