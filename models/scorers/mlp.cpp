#include "models/scorers/scorer.h"

#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/linear.h>

namespace transpool {
namespace {

class MlpScorer : public Scorer {
 public:
  MlpScorer(std::int64_t width, std::int64_t hidden)
      : hidden_(register_module("hidden", torch::nn::Linear(width, hidden))),
        linear_(register_module("linear", torch::nn::Linear(hidden, 1))) {}
  torch::Tensor forward(const ScorerInput& in) override {
    return score_from_logits(linear_->forward(torch::relu(hidden_->forward(in.x))).squeeze(2));
  }

 private:
  torch::nn::Linear hidden_;
  torch::nn::Linear linear_;
};

std::int64_t hidden_width(std::int64_t width, const Options& options) {
  const auto hidden = options.integer("hidden");
  return hidden == 0 ? width : hidden;
}

Cost mlp_cost(const ScorerShape& shape, const Options& options) {
  const auto rows = static_cast<double>(shape.batch * shape.length);
  Cost cost;
  cost.flops = 2 * rows * static_cast<double>(hidden_width(shape.width, options)) * static_cast<double>(shape.width + 1);
  cost.backward_flops = 2 * cost.flops;
  return cost;
}

const RegisterScorer registration({
    {.name = "mlp",
     .description = "two linear layers with a ReLU between them, sigmoid, + 1e-5",
     .source = "the linear scorer of arXiv 2009.05169, with a hidden layer",
     .options = {{.name = "hidden",
                  .type = OptionType::integer,
                  .fallback = 0,
                  .meaning = "width of the hidden layer; 0: the model's width",
                  .minimum = 0}}},
    [](std::int64_t width, const Options& options) {
      return std::make_shared<MlpScorer>(width, hidden_width(width, options));
    },
    mlp_cost,
});

}  // namespace
}  // namespace transpool
