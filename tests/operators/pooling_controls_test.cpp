#include "operators/pooling/strided_windows.h"

#include "tests/operators/poolings.h"

#include <cmath>
#include <limits>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

const std::vector<std::string> controls = {"random_topk", "first_k", "strided_mean", "strided_max", "column_attention"};

at::Tensor column_of(const std::vector<double>& values) { return at::tensor(values, at::kDouble).view({1, -1, 1}); }

std::shared_ptr<const PoolingOperator> make(Json value, bool reference = false) {
  if (value["name"] == "random_topk" && !value.contains("seed")) value["seed"] = 1;
  return pooling(value, reference);
}

Differentiable values_of_rows(const std::string& name, std::int64_t k, const Lengths& lengths, bool reference = false) {
  const auto op = make({{"name", name}}, reference);
  return [op, k, lengths](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    return {op->forward(in[0], at::zeros({in[0].size(0), in[0].size(1)}, at::kDouble), k, lengths).values};
  };
}

class PoolingControls : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20060323); }
};

TEST_F(PoolingControls, RowGradientsAreTheReferencesAndTheDerivative) {
  for (const auto& name : controls)
    for (const auto& [n, k] : std::vector<std::pair<std::int64_t, std::int64_t>>{{11, 4}, {8, 4}, {5, 5}, {6, 1}}) {
      SCOPED_TRACE(name + " n " + std::to_string(n) + " k " + std::to_string(k));
      for (const Lengths& lengths : {Lengths(), Lengths(lengths_of({n, k, k - 1, 0}))}) {
        const std::vector<at::Tensor> x = {at::randn({4, n, 3}, at::kDouble)};
        const auto function = values_of_rows(name, k, lengths);
        const auto cotangents = cotangents_for(function, x);
        EXPECT_TRUE(close(gradients_of(function, x, cotangents)[0],
                          gradients_of(values_of_rows(name, k, lengths, true), x, cotangents)[0], 1e-12, 1e-12));
        EXPECT_TRUE(gradients_match_differences(function, x));
      }
    }
}

TEST_F(PoolingControls, NothingReachesTheScores) {
  for (const auto& name : controls) {
    const auto op = make({{"name", name}});
    EXPECT_FALSE(op->passes_score_gradient()) << name;
    const auto pooled = op->forward(at::randn({1, 6, 2}), at::rand({1, 6}).requires_grad_(), 3, std::nullopt);
    EXPECT_FALSE(pooled.values.requires_grad() || pooled.scores.requires_grad()) << name;
  }
}

TEST_F(PoolingControls, RandomRowsAreEquallyLikelyAndInSourceOrder) {
  const auto op = pooling_registry().find("random_topk").make(pooling_registry().select({{"name", "random_topk"}}).options);
  constexpr std::int64_t batch = 20000;
  const auto lengths = at::full({batch}, 5, at::kLong);
  const auto positions = op->forward(at::zeros({batch, 7, 1}), at::rand({batch, 7}), 2, lengths).positions;
  EXPECT_TRUE((positions.select(1, 0) < positions.select(1, 1)).all().item<bool>());
  // 10 pairs of 5 rows, each with probability 1/10: 5 standard deviations are 212.
  const auto counts = (positions.select(1, 0) * 7 + positions.select(1, 1)).bincount({}, 49);
  EXPECT_EQ((counts > 0).sum().item<std::int64_t>(), 10);
  EXPECT_LT((counts.masked_select(counts > 0) - batch / 10).abs().max().item<std::int64_t>(), 212);
}

TEST_F(PoolingControls, ASeedRepeatsTheDrawAndLeavesTheGlobalGeneratorAlone) {
  const auto x = at::randn({3, 50, 1});
  const auto scores = at::rand({3, 50});
  const auto draw = [&](const Json& value) {
    const auto selection = pooling_registry().select(value);
    return selection.variant->make(selection.options)->forward(x, scores, 10, std::nullopt).positions;
  };
  torch::manual_seed(5);
  const auto undisturbed = at::rand({4});
  torch::manual_seed(5);
  const auto first = draw({{"name", "random_topk"}, {"seed", 3}});
  EXPECT_TRUE(at::equal(at::rand({4}), undisturbed));
  EXPECT_TRUE(at::equal(first, draw({{"name", "random_topk"}, {"seed", 3}})));
  EXPECT_FALSE(at::equal(first, draw({{"name", "random_topk"}, {"seed", 4}})));
  EXPECT_FALSE(at::equal(draw({{"name", "random_topk"}}), draw({{"name", "random_topk"}})));
  EXPECT_FALSE(at::equal(first[0], first[1])) << "batch rows draw their own";
}

TEST_F(PoolingControls, WindowsPartTheValidRowsEvenly) {
  for (const auto& [n, k] : std::vector<std::pair<std::int64_t, std::int64_t>>{{7, 3}, {12, 4}, {5, 5}, {9, 1}, {10, 7}}) {
    const auto lengths = lengths_of({n, n - 1, k, k - 1, 0});
    const auto windows = strided_windows(lengths, n, k, lengths);
    EXPECT_EQ(windows.size(2), (n + k - 1) / k);
    for (std::int64_t b = 0; b < 5; ++b) {
      const auto valid = lengths[b].item<std::int64_t>();
      const auto rows = windows[b].flatten();
      EXPECT_TRUE(at::equal(rows.masked_select(rows >= 0), at::arange(valid))) << rows;
      const auto sizes = (windows[b] >= 0).sum(1).narrow(0, 0, std::min(k, valid));
      if (valid == 0) continue;
      EXPECT_LE((sizes.max() - sizes.min()).item<std::int64_t>(), 1);
    }
  }
}

TEST_F(PoolingControls, StridedMeanAndMaxOfAShortRow) {
  const auto x = column_of({1, 5, 3, 2, 8, 100, 100});
  const auto scores = at::tensor({0.1, 0.5, 0.3, 0.2, 0.8, 9.0, 9.0}, at::kDouble).unsqueeze(0);
  // Windows of 5 rows in 2: rows 0 and 1, rows 2 to 4.
  const auto mean = make({{"name", "strided_mean"}})->forward(x, scores, 2, lengths_of({5}));
  EXPECT_TRUE(close(mean.values.flatten(), at::tensor({3.0, 13.0 / 3}, at::kDouble), 1e-15, 1e-15));
  EXPECT_TRUE(close(mean.scores.flatten(), at::tensor({0.3, 1.3 / 3}, at::kDouble), 1e-15, 1e-15));
  EXPECT_TRUE(at::equal(mean.positions.flatten(), lengths_of({0, 2})));
  const auto max = make({{"name", "strided_max"}})->forward(x, scores, 2, lengths_of({5}));
  EXPECT_TRUE(at::equal(max.values.flatten(), at::tensor({5.0, 8.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(max.scores.flatten(), at::tensor({0.5, 0.8}, at::kDouble)));
  EXPECT_TRUE(at::equal(max.positions.flatten(), lengths_of({1, 4})));
}

TEST_F(PoolingControls, StridedMaxKeepsRealMinusInfinityAndTheFirstOfEqualRows) {
  const double lowest = -std::numeric_limits<double>::infinity();
  const auto x = column_of({lowest, lowest, 2, 2, 2});
  const auto op = make({{"name", "strided_max"}});
  const auto pooled = op->forward(x, at::zeros({1, 5}, at::kDouble), 2, std::nullopt);
  EXPECT_TRUE(at::equal(pooled.values.flatten(), at::tensor({lowest, 2.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(pooled.positions.flatten(), lengths_of({0, 2})));
}

TEST_F(PoolingControls, ColumnAttentionKeepsTheRowsThatOthersAttendTo) {
  // Rows along the first axis attend most to the longest of them; the short ones get next to nothing.
  const auto x = at::tensor({1.0, 0.0, 9.0, 0.0, 1.0, 0.1, 0.0, 0.1, 8.5, 0.0, 0.0, 0.0}, at::kDouble).view({1, 6, 2});
  const auto op = make({{"name", "column_attention"}});
  const auto scores = at::rand({1, 6}, at::kDouble);
  EXPECT_TRUE(at::equal(op->forward(x, scores, 1, std::nullopt).positions, lengths_of({1}).unsqueeze(0)));
  EXPECT_TRUE(at::equal(op->forward(x, scores, 2, std::nullopt).positions, lengths_of({1, 4}).unsqueeze(0)));
  // Row 4 is past the length; row 0 gets less than row 2, whose second element row 3 shares.
  EXPECT_TRUE(at::equal(op->forward(x, scores, 2, lengths_of({4})).positions, lengths_of({1, 2}).unsqueeze(0)));
}

TEST_F(PoolingControls, ColumnAttentionInBlocksEqualsTheWholeMatrix) {
  // Large enough for several blocks of query rows, the last one smaller.
  const auto x = at::randn({3, 3000, 2});
  const auto scores = at::rand({3, 3000});
  const auto lengths = lengths_of({3000, 1701, 40});
  const auto found = make({{"name", "column_attention"}})->forward(x, scores, 50, lengths);
  const auto expected = make({{"name", "column_attention"}}, true)->forward(x, scores, 50, lengths);
  EXPECT_TRUE(at::equal(found.positions, expected.positions));
}

}  // namespace
}  // namespace transpool
