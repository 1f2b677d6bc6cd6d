#include "models/multi_head_attention.h"
#include "models/scorers/scorer.h"

#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// How much attention a row receives: the sum of its column of softmax(Q K^T / sqrt(e)), the mean over heads. Q and K are
/// projections of the scorer's own, since attention operators keep their weights to themselves.
class AttentionColumnScorer : public Scorer {
 public:
  AttentionColumnScorer(std::int64_t width, std::int64_t heads)
      : heads_(heads), input_(register_module("input", torch::nn::Linear(width, 2 * width))) {
    check_heads(width, heads);
  }

  torch::Tensor forward(const ScorerInput& in) override {
    const auto parts = input_->forward(in.x).chunk(2, 2);
    const auto q = split_heads(parts[0], heads_);
    const auto k = split_heads(parts[1], heads_);
    auto logits = torch::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
    if (!in.lengths) return logits.softmax(3, torch::kFloat).sum(2).mean(1);
    const auto n = in.x.size(1);
    const auto padded = valid_positions(in.lengths->clamp_min(1), n).logical_not();
    logits = logits.masked_fill(padded.view({-1, 1, 1, n}), -std::numeric_limits<double>::infinity());
    return logits.softmax(3, torch::kFloat).masked_fill(padded.view({-1, 1, n, 1}), 0).sum(2).mean(1);
  }

 private:
  std::int64_t heads_;
  torch::nn::Linear input_;
};

Cost attention_column_cost(const ScorerShape& shape, const Options&) {
  auto cost = projection_cost(shape.batch * shape.length, shape.width, 2 * shape.width, at::kFloat);
  const auto n = static_cast<double>(shape.length);
  const double products = 2.0 * static_cast<double>(shape.batch) * n * n * static_cast<double>(shape.width);
  cost.flops += products;
  cost.backward_flops += 2 * products;
  return cost;
}

const RegisterScorer registration({
    {.name = "attention_column",
     .description = "the attention a row receives from all rows, by projections of its own; n x n weights in memory",
     .source = "arXiv 2001.08950, significance score of PoWER-BERT",
     .options = {{.name = "heads", .type = OptionType::integer, .fallback = 1, .meaning = "attention heads", .minimum = 1}}},
    [](std::int64_t width, const Options& options) {
      return std::make_shared<AttentionColumnScorer>(width, options.integer("heads"));
    },
    attention_column_cost,
});

}  // namespace
}  // namespace transpool
