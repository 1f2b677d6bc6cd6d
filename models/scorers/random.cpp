#include "models/scorers/scorer.h"
#include "operators/noise.h"

namespace transpool {
namespace {

class RandomScorer : public Scorer {
 public:
  explicit RandomScorer(std::optional<std::int64_t> seed) : seed_(seed) {}

  torch::Tensor forward(const ScorerInput& in) override {
    const auto options = in.x.options().dtype(torch::kFloat).requires_grad(false);
    const at::IntArrayRef shape = in.x.sizes().slice(0, 2);
    return torch::rand(shape, seeded_generator(seed_, in.x.device()), options);
  }

 private:
  std::optional<std::int64_t> seed_;
};

const RegisterScorer registration({
    {.name = "random",
     .description = "uniform in [0, 1), drawn in each call: the lower bound; no parameters",
     .source = "control, of no paper: lower bound of any score",
     .options = {seed_option("scores")},
     .capabilities = {.stochastic = true}},
    [](std::int64_t, const Options& options) { return std::make_shared<RandomScorer>(seed_of(options)); },
    [](const ScorerShape&, const Options&) { return Cost(); },
});

}  // namespace
}  // namespace transpool
