#include "models/scorers/scorer.h"

#include <torch/nn/modules/linear.h>

namespace transpool {
namespace {

class LinearScorer : public Scorer {
 public:
  explicit LinearScorer(std::int64_t width) : linear_(register_module("linear", torch::nn::Linear(width, 1))) {}
  torch::Tensor forward(const ScorerInput& in) override { return score_from_logits(linear_->forward(in.x).squeeze(2)); }

 private:
  torch::nn::Linear linear_;
};

Cost linear_cost(const ScorerShape& shape, const Options&) {
  Cost cost;
  cost.flops = 2.0 * static_cast<double>(shape.batch * shape.length * shape.width);
  cost.backward_flops = 2 * cost.flops;
  return cost;
}

const RegisterScorer registration({
    {.name = "linear",
     .description = "one linear layer, sigmoid, + 1e-5",
     .source = "arXiv 2009.05169, linear scorer of the authors' published code"},
    [](std::int64_t width, const Options&) { return std::make_shared<LinearScorer>(width); },
    linear_cost,
});

}  // namespace
}  // namespace transpool
