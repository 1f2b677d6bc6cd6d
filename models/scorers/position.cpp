#include "models/scorers/scorer.h"

namespace transpool {
namespace {

/// 1 for the first row, falling evenly to 1/n for the last.
class PositionScorer : public Scorer {
 public:
  torch::Tensor forward(const ScorerInput& in) override {
    const auto n = in.x.size(1);
    const auto place = torch::arange(n, in.x.options().dtype(torch::kFloat).requires_grad(false));
    return (1 - place / static_cast<double>(n)).expand({in.x.size(0), n});
  }
};

const RegisterScorer registration({
    {.name = "position",
     .description = "earlier rows first, whatever they hold; no parameters",
     .source = "control, of no paper: the lead of the document"},
    [](std::int64_t, const Options&) { return std::make_shared<PositionScorer>(); },
    [](const ScorerShape&, const Options&) { return Cost(); },
});

}  // namespace
}  // namespace transpool
