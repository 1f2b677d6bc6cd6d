#include "tests/operators/mixtures.h"

namespace transpool {
namespace {

Json softsort(double temperature, int power = 1) {
  return {{"name", "softsort"}, {"temperature", temperature}, {"power", power}};
}

class SoftSort : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20090516); }
};

TEST_F(SoftSort, EqualsItsReferenceAtMildTemperatures) {
  for (const int power : {1, 2})
    for (const double temperature : {0.03, 0.3, 1.0}) expect_right(softsort(temperature, power));
}

TEST_F(SoftSort, EqualsItsReferenceInParts) {
  for (const double temperature : {0.01, 0.3}) expect_right_in_parts(softsort(temperature));
}

TEST_F(SoftSort, WeighsByTheDistanceToTheScoreOfThatRank) {
  const auto scores = at::tensor({0.2, 0.9, 0.5}, at::kDouble).unsqueeze(0);
  const auto linear = weights_of(softsort(0.5, 1), scores, 2)[0];
  EXPECT_TRUE(close(linear[0], at::tensor({-1.4, 0.0, -0.8}, at::kDouble).softmax(0), 1e-14, 0));
  EXPECT_TRUE(close(linear[1], at::tensor({-0.6, -0.8, 0.0}, at::kDouble).softmax(0), 1e-14, 0));
  const auto squared = weights_of(softsort(0.5, 2), scores, 2)[0];
  EXPECT_TRUE(close(squared[1], at::tensor({-0.18, -0.32, 0.0}, at::kDouble).softmax(0), 1e-14, 0));
}

TEST_F(SoftSort, ShiftedScoresWeighTheSameAndScaledOnesAsAnotherTemperature) {
  const auto scores = at::rand({2, 12}, at::kDouble);
  EXPECT_TRUE(close(weights_of(softsort(0.1), scores + 3, 5), weights_of(softsort(0.1), scores, 5), 1e-12, 1e-12));
  EXPECT_TRUE(close(weights_of(softsort(0.4), scores * 4, 5), weights_of(softsort(0.1), scores, 5), 1e-12, 1e-12));
}

TEST_F(SoftSort, RowsOfEqualScoreShareEvenlyAndTheFirstLeads) {
  const auto scores = at::tensor({0.1, 0.7, 0.7, 0.7}, at::kDouble).unsqueeze(0);
  const auto weights = weights_of(softsort(1e-3), scores, 3);
  EXPECT_TRUE(close(weights.narrow(2, 1, 3), at::full({1, 3, 3}, 1.0 / 3, at::kDouble), 1e-14, 0));
  const auto pooled = pooling(softsort(1e-3))->forward(at::randn({1, 4, 2}), scores.to(at::kFloat), 3, std::nullopt);
  EXPECT_TRUE(at::equal(pooled.positions, lengths_of({1, 1, 1}).unsqueeze(0)));
}

TEST_F(SoftSort, NearScoresKeepTheirLeadersInFloat32) {
  // The squared differences vanish beside 1, so that the weights themselves tie.
  const auto scores = at::tensor({0.5f, 0.5f + 6e-8f, 0.2f}).unsqueeze(0);
  const auto pooled = pooling(softsort(1.0, 2))->forward(at::randn({1, 3, 2}), scores, 2, std::nullopt);
  EXPECT_TRUE(at::equal(pooled.positions, lengths_of({1, 0}).unsqueeze(0))) << pooled.positions;
}

TEST_F(SoftSort, ReachesTheClosenessThatItsOptionStates) {
  EXPECT_NEAR(closeness_to_hard_topk(softsort(1e-3), 256, 32, 8), 0.92, 0.03);
  EXPECT_NEAR(closeness_to_hard_topk(softsort(1.0), 256, 32, 8), 0.09, 0.03);
}

}  // namespace
}  // namespace transpool
