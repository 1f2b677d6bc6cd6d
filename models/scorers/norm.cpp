#include "models/scorers/scorer.h"

#include <cmath>

namespace transpool {
namespace {

class NormScorer : public Scorer {
 public:
  torch::Tensor forward(const ScorerInput& in) override {
    return in.x.to(at::promote_types(in.x.scalar_type(), torch::kFloat)).norm(2, 2).to(torch::kFloat) /
           std::sqrt(static_cast<double>(in.x.size(2)));
  }
};

const RegisterScorer registration({
    {.name = "norm",
     .description = "the root mean square of the row; no parameters",
     .source = "control, of no paper: a score without parameters"},
    [](std::int64_t, const Options&) { return std::make_shared<NormScorer>(); },
    [](const ScorerShape&, const Options&) { return Cost(); },
});

}  // namespace
}  // namespace transpool
