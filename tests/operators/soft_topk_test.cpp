#include "tests/operators/mixtures.h"

namespace transpool {
namespace {

std::shared_ptr<const PoolingOperator> soft_topk(const Json& options) {
  Json value = {{"name", "soft_topk"}};
  value.update(options);
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

Differentiable as_function(const PoolingOperator& op, std::int64_t k) {
  return [&op, k](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    return {op.forward(in[0], in[1], k, std::nullopt).values};
  };
}

class SoftTopk : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20020650); }
};

TEST_F(SoftTopk, OfTwoRowsTheWinnerTakesTheLogisticShareInClosedForm) {
  // Two rows, one rank and the rest, one row each: P(first, rank 1)^2 / P(second, rank 1)^2 = e^(difference / temperature).
  for (const double difference : {0.0, 0.01, 0.2}) {
    const auto weights =
        weights_of(*soft_topk({{"temperature", 0.05}}), at::tensor({0.3 + difference, 0.3}).view({1, 2}), 1);
    const double share = 1 / (1 + std::exp(-difference / 0.05 / 2));
    EXPECT_NEAR(weights[0][0][0].item<double>(), share, 1e-6);
  }
}

TEST_F(SoftTopk, NoRowIsSpentMoreThanOnceAndOnceWhereAllAreKept) {
  for (const double temperature : {1.0, 0.1, 0.01, 1e-3, 1e-4})
    for (const std::int64_t k : {1, 7, 24}) {
      SCOPED_TRACE(std::to_string(temperature) + " k " + std::to_string(k));
      const auto weights = weights_of(*soft_topk({{"temperature", temperature}}), at::rand({3, 24}, at::kDouble), k);
      EXPECT_TRUE(close(weights.sum(2), at::ones({3, k}, at::kDouble), 1e-11, 1e-11));
      EXPECT_TRUE((weights.sum(1) < 1 + 1e-10).all().item<bool>()) << weights.sum(1);
      if (k == 24) {
        EXPECT_TRUE(close(weights.sum(1), at::ones({3, 24}, at::kDouble), 1e-9, 1e-9));
      }
    }
}

TEST_F(SoftTopk, ThePlanHasTheEntropicForm) {
  // exp((f + g - C) / epsilon) with bilinear cost: cross ratios of neighbouring ranks are e^(score difference /
  // temperature).
  const double temperature = 0.2;
  const auto scores = at::rand({1, 6}, at::kDouble);
  const auto log_weights = weights_of(*soft_topk({{"temperature", temperature}}), scores, 3)[0].log();
  for (std::int64_t j = 0; j < 2; ++j) {
    const auto ratio = log_weights[j] - log_weights[j + 1];
    EXPECT_TRUE(close(ratio - ratio[0], (scores[0] - scores[0][0]) / temperature, 1e-9, 1e-9));
  }
}

TEST_F(SoftTopk, OrderOfTheRowsChangesOnlyTheOrderOfTheWeights) {
  const auto scores = at::rand({1, 20}, at::kDouble);
  const auto order = at::randperm(20);
  const auto op = soft_topk(Json::object());
  EXPECT_TRUE(close(weights_of(*op, scores, 5).index_select(2, order), weights_of(*op, scores.index_select(1, order), 5),
                    1e-11, 1e-11));
}

TEST_F(SoftTopk, ScoresMayMoveByAConstant) {
  const auto scores = at::rand({2, 20}, at::kDouble);
  const auto op = soft_topk(Json::object());
  EXPECT_TRUE(close(weights_of(*op, scores, 5), weights_of(*op, scores + 3, 5), 1e-9, 1e-9));
}

TEST_F(SoftTopk, GradientsMatchFiniteDifferencesAtEveryTemperature) {
  for (const double temperature : {1.0, 0.1, 0.01})
    for (const std::int64_t k : {1, 4, 9}) {
      SCOPED_TRACE(std::to_string(temperature) + " k " + std::to_string(k));
      const auto op = soft_topk({{"temperature", temperature}});
      EXPECT_TRUE(gradients_match_differences(as_function(*op, k),
                                              {at::randn({2, 9, 2}, at::kDouble), at::rand({2, 9}, at::kDouble)}, 2e-6));
    }
}

TEST_F(SoftTopk, DefaultStepsConvergeOnLongInputsOfAnyShape) {
  const auto uniform = at::rand({1, 1024}, at::kDouble);
  const auto peaks = at::cat({at::rand({1, 512}, at::kDouble) * 0.02, 1 - at::rand({1, 512}, at::kDouble) * 0.02}, 1);
  const auto tied = at::floor(uniform * 5) / 5;
  const auto wide = at::randn({1, 1024}, at::kDouble) * 1000;
  const auto low = uniform * 1e-5;
  for (const auto& scores : {uniform, peaks, tied, wide, low})
    for (const double temperature : {0.1, 0.01}) {
      const auto found = weights_of(*soft_topk({{"temperature", temperature}}), scores, 128);
      const auto more = weights_of(*soft_topk({{"temperature", temperature}, {"newton_steps", 30}}), scores, 128);
      EXPECT_TRUE(close(found, more, 1e-7, 1e-8)) << "temperature " << temperature;
    }
}

TEST_F(SoftTopk, EqualsItsReferenceInParts) {
  for (const double temperature : {0.01, 0.1}) expect_right_in_parts({{"name", "soft_topk"}, {"temperature", temperature}});
}

TEST_F(SoftTopk, SinkhornAloneComesToTheSamePlan) {
  const auto scores = at::rand({2, 8}, at::kDouble);
  const auto sinkhorn = soft_topk({{"temperature", 0.3}, {"iterations", 2000}, {"newton_steps", 0}});
  const auto newton = soft_topk({{"temperature", 0.3}, {"iterations", 0}, {"newton_steps", 15}});
  EXPECT_TRUE(close(weights_of(*sinkhorn, scores, 3), weights_of(*newton, scores, 3), 1e-9, 1e-9));
}

TEST_F(SoftTopk, RanksBeyondAShortLengthAreEmptyAndTheOthersAsIfCutOff) {
  const auto scores = at::rand({3, 10}, at::kDouble);
  const auto lengths = at::tensor({3, 4, 5}, at::kLong);
  const auto op = soft_topk({{"temperature", 0.1}});
  const auto weights = weights_of(*op, scores, 4, lengths);
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto length = lengths[b].item<std::int64_t>();
    const auto left = std::min<std::int64_t>(4, length);
    const auto alone = weights_of(*op, scores.narrow(0, b, 1).narrow(1, 0, length), left);
    EXPECT_TRUE(close(weights[b].narrow(0, 0, left).narrow(1, 0, length), alone[0], 1e-10, 1e-10));
    EXPECT_TRUE((weights[b].narrow(0, left, 4 - left) == 0).all().item<bool>());
  }
}

TEST_F(SoftTopk, GradientReachesRowsOnBothSidesOfTheBound) {
  const std::vector<at::Tensor> inputs = {at::randn({1, 8, 3}, at::kDouble),
                                          at::linspace(0, 0.5, 8, at::kDouble).unsqueeze(0)};
  const auto op = soft_topk({{"temperature", 0.1}});
  const auto function = as_function(*op, 3);
  const auto gradients = gradients_of(function, inputs, cotangents_for(function, inputs));
  EXPECT_TRUE((gradients[1].abs() > 1e-9).all().item<bool>()) << gradients[1];
}

}  // namespace
}  // namespace transpool
