#include "models/scorers/scorer.h"

namespace transpool {

Registry<ScorerVariant>& scorer_registry() {
  static Registry<ScorerVariant> registry("scorer", "scorer");
  return registry;
}

torch::Tensor score_from_logits(const torch::Tensor& logits) { return logits.to(torch::kFloat).sigmoid() + 1e-5; }

}  // namespace transpool
