#include "tests/operators/mixtures.h"

#include <limits>

namespace transpool {
namespace {

Json relaxed(double temperature, bool gumbel = false, Json seed = nullptr) {
  return {{"name", "relaxed_subset"}, {"temperature", temperature}, {"gumbel", gumbel}, {"seed", std::move(seed)}};
}

class RelaxedSubset : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20090516); }
};

TEST_F(RelaxedSubset, EqualsItsReferenceAtMildTemperatures) {
  for (const double temperature : {0.1, 0.3, 1.0}) expect_right(relaxed(temperature));
  for (const double temperature : {0.3, 1.0}) expect_right(relaxed(temperature, true, 1));
}

TEST_F(RelaxedSubset, EachRoundAddsTheLogarithmOfTheWeightThatIsLeft) {
  const auto scores = at::tensor({0.2, 0.9, 0.5}, at::kDouble);
  auto a = scores;
  const auto weights = weights_of(relaxed(0.5), scores.unsqueeze(0), 3)[0];
  for (std::int64_t i = 0; i < 3; ++i) {
    const auto p = (a / 0.5).softmax(0);
    EXPECT_TRUE(close(weights[i], p, 1e-13, 1e-13)) << "round " << i;
    a = a + (1 - p).log();
  }
}

TEST_F(RelaxedSubset, ARowOfAllWeightIsChosenOnceAndItsGradientStaysFinite) {
  // 1 - p is 0 in floating point; what it would leave behind still ranks the row under all others.
  const std::vector<at::Tensor> inputs = {at::randn({1, 4, 2}, at::kDouble),
                                          at::tensor({5000.0, 0.3, 0.1, 0.2}, at::kDouble).unsqueeze(0)};
  const auto op = pooling(relaxed(1e-3));
  EXPECT_TRUE(
      at::equal(op->forward(inputs[0], inputs[1], 4, std::nullopt).positions, lengths_of({0, 1, 3, 2}).unsqueeze(0)));
  const auto function = pooled_by(op, 4, std::nullopt);
  const auto found = gradients_of(function, inputs, cotangents_for(function, inputs));
  EXPECT_TRUE(finite(found[1])) << found[1];
}

TEST_F(RelaxedSubset, EqualScoresStayEqualInEveryRound) {
  const auto weights = weights_of(relaxed(0.01), at::full({1, 16}, 0.5, at::kDouble), 16);
  EXPECT_TRUE(close(weights, at::full({1, 16, 16}, 1.0 / 16, at::kDouble), 1e-13, 0));
}

TEST_F(RelaxedSubset, NoiseIsThatOfTheSeedOrFreshWithoutOne) {
  const auto scores = at::rand({2, 20}, at::kDouble);
  const auto first = weights_of(relaxed(0.5, true, 7), scores, 4);
  EXPECT_TRUE(at::equal(first, weights_of(relaxed(0.5, true, 7), scores, 4)));
  EXPECT_FALSE(at::equal(first, weights_of(relaxed(0.5, true, 8), scores, 4)));
  EXPECT_FALSE(at::equal(weights_of(relaxed(0.5, true), scores, 4), weights_of(relaxed(0.5, true), scores, 4)));
  EXPECT_TRUE(close(weights_of(relaxed(0.5, true, 7), scores.to(at::kFloat), 4).to(at::kDouble), first, 1e-5, 1e-5))
      << "other noise in float32";
}

TEST_F(RelaxedSubset, WithoutNoiseNothingIsDrawn) {
  const auto scores = at::rand({1, 9});
  torch::manual_seed(3);
  const auto expected = at::rand({4});
  torch::manual_seed(3);
  weights_of(relaxed(0.1), scores, 3);
  weights_of(relaxed(0.1, true, 5), scores, 3);
  EXPECT_TRUE(at::equal(at::rand({4}), expected));
}

TEST_F(RelaxedSubset, NoisySubsetsFollowTheOddsOfTheScores) {
  // At a low temperature the first row chosen is a sample of softmax(s).
  const auto scores = at::tensor({0.0, 1.0, 2.0}, at::kDouble);
  const std::int64_t samples = 20000;
  const auto pooled =
      pooling(relaxed(1e-6, true, 1))->forward(at::zeros({samples, 3, 1}), scores.expand({samples, 3}), 1, std::nullopt);
  const auto found = pooled.positions.flatten().bincount({}, 3).to(at::kDouble) / static_cast<double>(samples);
  EXPECT_TRUE(close(found, scores.softmax(0), 0, 0.015)) << found;
}

TEST_F(RelaxedSubset, ReachesTheClosenessThatItsOptionStates) {
  EXPECT_NEAR(closeness_to_hard_topk({{"name", "relaxed_subset"}}, 256, 32, 8), 0.13, 0.03);
  EXPECT_NEAR(closeness_to_hard_topk(relaxed(1e-4), 256, 32, 8), 0.97, 0.02);
}

}  // namespace
}  // namespace transpool
