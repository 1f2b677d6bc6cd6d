#include "tests/operators/mixtures.h"

#include <cmath>

namespace transpool {
namespace {

Json neuralsort(double temperature) { return {{"name", "neuralsort"}, {"temperature", temperature}}; }

/// The row-stochastic matrix of arXiv 1903.08850 as it is defined, for one batch row (n,).
at::Tensor literal_weights(const at::Tensor& s, std::int64_t k, double temperature) {
  const auto n = s.size(0);
  const auto sums = (s.unsqueeze(1) - s.unsqueeze(0)).abs().sum(1);
  std::vector<at::Tensor> rows;
  for (std::int64_t i = 1; i <= k; ++i)
    rows.push_back(((static_cast<double>(n + 1 - 2 * i) * s - sums) / temperature).softmax(0));
  return at::stack(rows);
}

class NeuralSort : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20090516); }
};

TEST_F(NeuralSort, EqualsItsReferenceAtMildTemperatures) {
  for (const double temperature : {0.03, 0.3, 1.0}) expect_right(neuralsort(temperature));
}

TEST_F(NeuralSort, IsTheFormulaOfThePaper) {
  for (const auto n : {1, 2, 5, 40})
    for (const double temperature : {0.1, 1.0}) {
      const auto scores = at::randn({2, n}, at::kDouble);
      const auto weights = weights_of(neuralsort(temperature), scores, n);
      for (std::int64_t b = 0; b < 2; ++b)
        EXPECT_TRUE(close(weights[b], literal_weights(scores[b], n, temperature), 1e-10, 1e-12)) << "n " << n;
    }
}

TEST_F(NeuralSort, CountsTheRowsOfEachBatchRowAlone) {
  const auto scores = at::rand({2, 12}, at::kDouble);
  const auto weights = weights_of(neuralsort(0.5), scores, 4, lengths_of({7, 12}));
  EXPECT_TRUE(close(weights[0].narrow(1, 0, 7), literal_weights(scores[0].narrow(0, 0, 7), 4, 0.5), 1e-11, 1e-12));
  EXPECT_TRUE(close(weights[1], literal_weights(scores[1], 4, 0.5), 1e-11, 1e-12));
}

TEST_F(NeuralSort, LongFloat32RowsKeepTheirDigits) {
  // (n + 1 - 2i) s and A 1 are near 1e4 here: in float32 their difference would be off by 1e-3, the temperature itself.
  const auto scores = at::rand({1, 8192});
  const auto x = at::randn({1, 8192, 4});
  const auto op = pooling(neuralsort(1e-3));
  const auto single = op->forward(x, scores, 16, std::nullopt);
  const auto twice = op->forward(x.to(at::kDouble), scores.to(at::kDouble), 16, std::nullopt);
  EXPECT_TRUE(close(single.values, twice.values.to(at::kFloat), 1e-4, 1e-4));
  EXPECT_TRUE(at::equal(single.positions, twice.positions));
}

TEST_F(NeuralSort, ReachesTheClosenessThatItsOptionStates) {
  EXPECT_NEAR(closeness_to_hard_topk(neuralsort(1e-3), 256, 32, 8), 0.93, 0.03);
  EXPECT_NEAR(closeness_to_hard_topk(neuralsort(1.0), 256, 32, 8), 0.28, 0.03);
}

}  // namespace
}  // namespace transpool
