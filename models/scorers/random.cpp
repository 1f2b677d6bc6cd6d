#include "models/scorers/scorer.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>

namespace transpool {
namespace {

class RandomScorer : public Scorer {
 public:
  explicit RandomScorer(std::optional<std::int64_t> seed) : seed_(seed) {}

  torch::Tensor forward(const ScorerInput& in) override {
    const auto options = in.x.options().dtype(torch::kFloat).requires_grad(false);
    const at::IntArrayRef shape = in.x.sizes().slice(0, 2);
    if (!seed_) return torch::rand(shape, options);
    auto generator = at::globalContext().defaultGenerator(in.x.device()).clone();
    generator.set_current_seed(static_cast<std::uint64_t>(*seed_));
    return torch::rand(shape, generator, options);
  }

 private:
  std::optional<std::int64_t> seed_;
};

const RegisterScorer registration({
    {.name = "random",
     .description = "uniform in [0, 1), drawn in each call: the lower bound; no parameters",
     .source = "control, of no paper: lower bound of any score",
     .options = {{.name = "seed",
                  .type = OptionType::integer,
                  .meaning = "the same scores in each call; null: torch's own generator, new ones in each call",
                  .minimum = 0,
                  .optional = true}},
     .capabilities = {.stochastic = true}},
    [](std::int64_t, const Options& options) {
      return std::make_shared<RandomScorer>(options.has("seed") ? std::optional(options.integer("seed")) : std::nullopt);
    },
    [](const ScorerShape&, const Options&) { return Cost(); },
});

}  // namespace
}  // namespace transpool
