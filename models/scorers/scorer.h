#pragma once

#include "operators/registry.h"

#include <torch/nn/module.h>

#include <optional>

namespace transpool {

struct ScorerShape {
  std::int64_t batch = 1;
  std::int64_t length = 1;
  std::int64_t width = 1;
};

/// What a scorer may look at.
struct ScorerInput {
  torch::Tensor x;                            ///< (B, n, d)
  std::optional<torch::Tensor> lengths = {};  ///< int64 (B,): valid rows; all where absent
  /// int64 (B, n): the source token that each row began as (where rows were mixed, the one that weighs most); -1: padding.
  std::optional<torch::Tensor> tokens = {};
};

/// Maps rows to scores (B, n) in float32. Scores of padded rows are never used.
class Scorer : public torch::nn::Module {
 public:
  virtual torch::Tensor forward(const ScorerInput& in) = 0;
};

struct ScorerVariant : VariantInfo {
  std::function<std::shared_ptr<Scorer>(std::int64_t width, const Options&)> make = {};
  std::function<Cost(const ScorerShape&, const Options&)> cost = {};
};

Registry<ScorerVariant>& scorer_registry();

struct RegisterScorer {
  explicit RegisterScorer(ScorerVariant variant) { scorer_registry().add(std::move(variant)); }
};

/// sigmoid(logits) + 1e-5 in float32: the score range of the code published with arXiv 2009.05169, never 0.
torch::Tensor score_from_logits(const torch::Tensor& logits);

/// The dtype that linear layers of a scorer compute in: that of autocast where it is on and takes x, else that of x.
at::ScalarType scorer_dtype(const torch::Tensor& x);

}  // namespace transpool
