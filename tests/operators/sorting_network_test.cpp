#include "tests/operators/poolings.h"

#include <numbers>

namespace transpool {
namespace {

std::shared_ptr<const PoolingOperator> network(const std::string& distribution, double temperature) {
  return pooling({{"name", "sorting_network"}, {"distribution", distribution}, {"temperature", temperature}});
}

class SortingNetwork : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(21050401); }
};

TEST_F(SortingNetwork, OneComparatorIsTheDistributionItself) {
  const auto scores = at::tensor({0.2, 0.5}, at::kDouble).view({1, 2});
  const double z = 0.3 / 0.1;
  const auto logistic = weights_of(*network("logistic", 0.1), scores, 2)[0];
  EXPECT_NEAR(logistic[0][1].item<double>(), 1 / (1 + std::exp(-z)), 1e-12);
  EXPECT_NEAR(logistic[1][0].item<double>(), 1 / (1 + std::exp(-z)), 1e-12);
  const auto cauchy = weights_of(*network("cauchy", 0.1), scores, 2)[0];
  EXPECT_NEAR(cauchy[0][1].item<double>(), std::atan(z) / std::numbers::pi + 0.5, 1e-12);
}

TEST_F(SortingNetwork, AllWiresTogetherSpendEachRowOnce) {
  for (const std::string distribution : {"logistic", "cauchy"})
    for (const std::int64_t n : {2, 8, 13, 32}) {
      const auto weights = weights_of(*network(distribution, 0.1), at::rand({3, n}, at::kDouble), n);
      EXPECT_TRUE(close(weights.sum(1), at::ones({3, n}, at::kDouble), 1e-12, 1e-12)) << n;
      EXPECT_TRUE(close(weights.sum(2), at::ones({3, n}, at::kDouble), 1e-12, 1e-12)) << n;
    }
}

TEST_F(SortingNetwork, TheFirstWiresDoNotDependOnHowManyAreAskedFor) {
  const auto op = network("cauchy", 0.05);
  const auto scores = at::rand({2, 19}, at::kDouble);
  EXPECT_TRUE(close(weights_of(*op, scores, 5), weights_of(*op, scores, 19).narrow(1, 0, 5), 1e-14, 1e-14));
}

TEST_F(SortingNetwork, SharpSwapsSortEveryOrder) {
  auto order = std::vector<std::int64_t>{0, 1, 2, 3, 4, 5};
  const auto op = network("logistic", 1e-4);
  do {
    const auto scores = at::tensor(order, at::kLong).to(at::kDouble).unsqueeze(0);
    const auto kept = op->forward(at::randn({1, 6, 2}, at::kDouble), scores, 6, std::nullopt).scores;
    ASSERT_TRUE(close(kept[0], at::arange(5, -1, -1, at::kDouble), 1e-12, 1e-12)) << scores;
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(SortingNetwork, EqualScoresShareEvenly) {
  const auto weights = weights_of(*network("cauchy", 0.1), at::full({1, 8}, 0.3, at::kDouble), 3);
  EXPECT_TRUE(close(weights, at::full_like(weights, 0.125), 1e-14, 1e-14)) << weights;
}

TEST_F(SortingNetwork, CauchySwapsNeverLowerAnOutputWhenItsScoreRises) {
  // The monotony that arXiv 2203.09630 proves: raising any input lowers no output of the network.
  const auto scores = at::rand({1, 8}, at::kDouble).requires_grad_();
  const auto pooled = network("cauchy", 0.2)->forward(at::zeros({1, 8, 1}, at::kDouble), scores, 8, std::nullopt);
  for (std::int64_t j = 0; j < 8; ++j) {
    const auto slope = torch::autograd::grad({pooled.scores[0][j]}, {scores}, {}, /*retain_graph=*/true)[0];
    EXPECT_TRUE((slope >= -1e-12).all().item<bool>()) << slope;
  }
}

TEST_F(SortingNetwork, GradientsOfManyStagesMatchFiniteDifferences) {
  for (const std::string distribution : {"logistic", "cauchy"})
    for (const std::int64_t n : {1, 2, 13}) {
      SCOPED_TRACE(distribution + " n " + std::to_string(n));
      const auto function = pooled_by(network(distribution, 0.2), (n + 1) / 2);
      EXPECT_TRUE(gradients_match_differences(function, {at::randn({2, n, 2}, at::kDouble), at::rand({2, n}, at::kDouble)}));
    }
}

TEST_F(SortingNetwork, PaddedRowsHaveWeightZeroExactly) {
  const auto scores = at::rand({4, 13}, at::kDouble) - 5;
  const auto lengths = at::tensor({13, 6, 2, 0}, at::kLong);
  const auto weights = weights_of(*network("cauchy", 1.0), scores, 4, lengths);
  const auto padded = at::arange(13) >= lengths.view({4, 1, 1});
  EXPECT_TRUE((weights.masked_select(padded.expand_as(weights)) == 0).all().item<bool>());
  EXPECT_TRUE(close(weights.sum(2), (at::arange(4) < lengths.unsqueeze(1)).to(at::kDouble), 1e-12, 1e-12));
}

}  // namespace
}  // namespace transpool
