#include "tests/operators/mixtures.h"

namespace transpool {
namespace {

Json iterative(double alpha, const std::string& form = "score") {
  return {{"name", "iterative_softmax"}, {"alpha", alpha}, {"form", form}};
}

class IterativeSoftmax : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20090516); }
};

TEST_F(IterativeSoftmax, EqualsItsReferenceAtMildSharpness) {
  for (const auto* form : {"score", "squared_distance", "all_rows"})
    for (const double alpha : {1.0, 20.0}) expect_right(iterative(alpha, form));
}

TEST_F(IterativeSoftmax, EqualsItsReferenceInParts) {
  for (const double alpha : {3.0, 100.0}) expect_right_in_parts(iterative(alpha));
}

TEST_F(IterativeSoftmax, WeighsTheRowsThatAreLeft) {
  const auto scores = at::tensor({0.2, 0.9, 0.5}, at::kDouble).unsqueeze(0);
  const auto weights = weights_of(iterative(2), scores, 3)[0];
  EXPECT_TRUE(close(weights[0], at::tensor({0.4, 1.8, 1.0}, at::kDouble).softmax(0), 1e-14, 0));
  const auto left = at::tensor({0.4, 1.0}, at::kDouble).softmax(0);
  EXPECT_TRUE(close(weights[1], at::tensor({left[0].item<double>(), 0.0, left[1].item<double>()}, at::kDouble), 1e-14, 0));
  EXPECT_TRUE(at::equal(weights[2], at::tensor({1.0, 0.0, 0.0}, at::kDouble)));
}

TEST_F(IterativeSoftmax, DistancesAreThoseToTheHighestRowLeftAndAlgorithmTwoKeepsAllRows) {
  const auto scores = at::tensor({0.2, 0.9, 0.5}, at::kDouble).unsqueeze(0);
  const auto all = weights_of(iterative(2, "all_rows"), scores, 2)[0];
  EXPECT_TRUE(close(all[1], at::tensor({-0.18, -0.32, 0.0}, at::kDouble).softmax(0), 1e-14, 0));
  const auto left = weights_of(iterative(2, "squared_distance"), scores, 2)[0];
  EXPECT_TRUE(close(left[0], all[0], 1e-14, 0));
  EXPECT_EQ(left[1][1].item<double>(), 0);
  EXPECT_NEAR(left[1][2].item<double>(), 1 / (1 + std::exp(-0.18)), 1e-14);
}

TEST_F(IterativeSoftmax, AlphaZeroIsTheMeanOfTheRowsLeft) {
  const auto weights = weights_of(iterative(0), at::arange(4, at::kDouble).unsqueeze(0), 2)[0];
  EXPECT_TRUE(close(weights[0], at::full({4}, 0.25, at::kDouble), 1e-15, 0));
  EXPECT_TRUE(close(weights[1], at::tensor({1.0, 1.0, 1.0, 0.0}, at::kDouble) / 3, 1e-15, 0));
}

TEST_F(IterativeSoftmax, EqualScoresLeaveFromTheLowestPosition) {
  const auto pooled = pooling(iterative(1))->forward(at::randn({1, 5, 2}), at::full({1, 5}, 0.5), 5, std::nullopt);
  EXPECT_TRUE(at::equal(pooled.positions, at::arange(5).unsqueeze(0)));
}

TEST_F(IterativeSoftmax, AtAlphaOneIsAsCloseToHardTopkAsTheAuthorsMeasured) {
  // Means of benchmark_log in applicaai/successive-halving-topk, cells (256, 32) and (512, 256).
  EXPECT_NEAR(closeness_to_hard_topk(iterative(1), 256, 32, 16), 0.1359, 0.015);
  EXPECT_NEAR(closeness_to_hard_topk(iterative(1), 512, 256, 16), 0.1862, 0.015);
}

TEST_F(IterativeSoftmax, ReachesTheClosenessThatItsOptionStates) {
  EXPECT_NEAR(closeness_to_hard_topk({{"name", "iterative_softmax"}}, 256, 32, 8), 0.96, 0.02);
  EXPECT_NEAR(closeness_to_hard_topk(iterative(1e4), 256, 32, 8), 0.995, 0.005);
}

}  // namespace
}  // namespace transpool
