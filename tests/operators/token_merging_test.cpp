#include "tests/operators/poolings.h"

#include <cmath>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

std::shared_ptr<const PoolingOperator> make(bool reference = false) { return pooling("token_merging", reference); }

/// Unit vectors at these angles in degrees, (1, n, 2).
at::Tensor directions(const std::vector<double>& degrees) {
  const auto angle = at::tensor(degrees, at::kDouble) * (std::acos(-1.0) / 180);
  return at::stack({angle.cos(), angle.sin()}, 1).unsqueeze(0);
}

class TokenMerging : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(22100946); }
};

TEST_F(TokenMerging, TheMostSimilarPairsOfTheTwoSetsMergeIntoTheirMeans) {
  // Set A: rows 0, 2, 4; set B: rows 1, 3. Best pairs: (0, 3) by 2 degrees, (4, 1) by 5, (2, 1) by 20.
  const auto x = directions({0, 100, 80, 2, 105});
  const auto scores = at::tensor({0.1, 0.2, 0.3, 0.5, 0.6}, at::kDouble).unsqueeze(0);
  const auto one = make()->forward(x, scores, 4, std::nullopt);
  EXPECT_TRUE(at::equal(one.positions.squeeze(0), lengths_of({0, 1, 2, 4})));
  EXPECT_TRUE(close(one.values[0][0], (x[0][0] + x[0][3]) / 2, 1e-15, 1e-15));
  EXPECT_TRUE(close(one.scores[0], at::tensor({0.3, 0.2, 0.3, 0.6}, at::kDouble), 1e-15, 1e-15));
  const auto two = make()->forward(x, scores, 3, std::nullopt);
  EXPECT_TRUE(at::equal(two.positions.squeeze(0), lengths_of({0, 1, 2})));
  EXPECT_TRUE(close(two.values[0][1], (x[0][1] + x[0][4]) / 2, 1e-15, 1e-15));
}

TEST_F(TokenMerging, ALaterStepWeighsRowsByWhatTheyHold) {
  // Step 1 merges rows 0 and 2 into row 1; step 2 merges rows 0 (now of three) and 3 into one mean of all four.
  const auto x = directions({0, 1, 2, 90});
  const auto pooled = make()->forward(x, at::zeros({1, 4}, at::kDouble), 1, std::nullopt);
  EXPECT_TRUE(close(pooled.values[0][0], x[0].mean(0), 1e-15, 1e-15));
  EXPECT_EQ(pooled.positions.item<std::int64_t>(), 0);
}

TEST_F(TokenMerging, EveryRowIsHeldByExactlyOneOutput) {
  // Unit vectors show the shares themselves, with a little noise to tell the pairs apart.
  const std::int64_t n = 37;
  const auto x = at::eye(n, at::kDouble).unsqueeze(0) + 1e-3 * at::rand({3, n, n}, at::kDouble);
  const auto lengths = lengths_of({n, 20, 5});
  for (const std::int64_t k : {1, 4, 18, 19, 36}) {
    const auto pooled = make()->forward(x, at::ones({3, n}, at::kDouble), k, lengths);
    const auto held = pooled.values > 0.5 / static_cast<double>(n);
    for (std::int64_t b = 0; b < 3; ++b) {
      const auto valid = lengths[b].item<std::int64_t>();
      EXPECT_TRUE(at::equal(held[b].sum(0), (at::arange(n) < valid).to(at::kLong))) << "k " << k << " b " << b;
      const auto real = pooled.positions[b].narrow(0, 0, std::min(k, valid));
      EXPECT_TRUE((real.diff() > 0).all().item<bool>()) << "not in source order";
    }
  }
}

TEST_F(TokenMerging, RowGradientsAreTheReferencesAndTheDerivative) {
  for (const auto& [n, k] : std::vector<std::pair<std::int64_t, std::int64_t>>{{13, 3}, {8, 4}, {5, 5}, {6, 1}})
    for (const Lengths& lengths : {Lengths(), Lengths(lengths_of({n, k, k - 1, 0}))}) {
      const std::vector<at::Tensor> x = {at::randn({4, n, 3}, at::kDouble)};
      const auto function = [&, k = k](bool reference) -> Differentiable {
        return [op = make(reference), k, lengths](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
          return {op->forward(in[0], at::zeros({4, in[0].size(1)}, at::kDouble), k, lengths).values};
        };
      };
      const auto cotangents = cotangents_for(function(false), x);
      EXPECT_TRUE(close(gradients_of(function(false), x, cotangents)[0], gradients_of(function(true), x, cotangents)[0],
                        1e-12, 1e-12));
      EXPECT_TRUE(gradients_match_differences(function(false), x));
    }
}

TEST_F(TokenMerging, EquallySimilarRowsMergeFromTheLowestPositionOn) {
  // In one dimension all cosines are 1 or -1.
  const auto x = at::tensor({1.0, 2.0, 3.0, 4.0, -5.0, 6.0}, at::kDouble).view({1, 6, 1});
  const auto pooled = make()->forward(x, at::zeros({1, 6}, at::kDouble), 4, std::nullopt);
  EXPECT_TRUE(at::equal(pooled.positions.squeeze(0), lengths_of({0, 3, 4, 5})));
  EXPECT_TRUE(at::equal(pooled.values.flatten(), at::tensor({2.0, 4.0, -5.0, 6.0}, at::kDouble)));
}

TEST_F(TokenMerging, ZeroRowsAndRowsThatAreNotNumbersStayInTheirGroups) {
  auto x = at::randn({2, 12, 3}, at::kDouble);
  x[0][3].zero_();
  x[0][4].zero_();
  x[1][2].fill_(std::nan(""));
  const auto scores = at::rand({2, 12}, at::kDouble);
  const auto pooled = make()->forward(x, scores, 8, std::nullopt);
  EXPECT_TRUE(finite(pooled.values[0]));
  // NaN is similar to nothing, so that it merges last and spoils no other row.
  EXPECT_EQ(pooled.values[1].isnan().any(1).sum().item<std::int64_t>(), 1);
  EXPECT_TRUE(at::equal(pooled.positions, make(true)->forward(x, scores, 8, std::nullopt).positions));
}

TEST_F(TokenMerging, ManyRowsInBlocksEqualTheirBatchRowAlone) {
  const auto x = at::randn({2, 6001, 4});
  const auto scores = at::rand({2, 6001});
  const auto lengths = lengths_of({6001, 3000});
  const auto found = make()->forward(x, scores, 1500, lengths);
  const auto again =
      make()->forward(x.narrow(0, 1, 1).narrow(1, 0, 3000), scores.narrow(0, 1, 1).narrow(1, 0, 3000), 1500, std::nullopt);
  EXPECT_TRUE(at::equal(found.positions[1], again.positions[0]));
  EXPECT_TRUE(close(found.values[1], again.values[0], 1e-6, 1e-6));
}

}  // namespace
}  // namespace transpool
