#include "operators/pooling/pooling.h"

#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <cmath>
#include <numbers>

namespace transpool {
namespace {

constexpr double sigma = 0.5;

std::shared_ptr<const PoolingOperator> perturbed(const Json& options) {
  Json value = {{"name", "perturbed_topk"}, {"temperature", sigma}};
  value.update(options);
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

double density(double z) { return std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi); }
double distribution(double z) { return std::erfc(-z / std::numbers::sqrt2) / 2; }

/// P(row i has the highest of s + sigma Z), and its derivatives in all scores, by the trapezoidal rule over the row's value.
struct Exact {
  at::Tensor probability;  // (n)
  at::Tensor slope;        // (n, n): [i][m] = dP_i / ds_m
};

Exact exact_winner(const std::vector<double>& s) {
  const auto n = static_cast<std::int64_t>(s.size());
  Exact exact{at::zeros({n}, at::kDouble), at::zeros({n, n}, at::kDouble)};
  constexpr double step = 1e-3;
  for (double value = -6; value < 7; value += step)
    for (std::int64_t i = 0; i < n; ++i) {
      const auto z = [&](std::int64_t m) { return (value - s[static_cast<std::size_t>(m)]) / sigma; };
      double others = 1;
      for (std::int64_t m = 0; m < n; ++m) others *= m == i ? 1 : distribution(z(m));
      exact.probability[i] += density(z(i)) / sigma * others * step;
      exact.slope[i][i] += z(i) / sigma * density(z(i)) / sigma * others * step;
      for (std::int64_t m = 0; m < n; ++m)
        if (m != i) exact.slope[i][m] -= density(z(i)) / sigma * others / distribution(z(m)) * density(z(m)) / sigma * step;
    }
  return exact;
}

/// Within 4.5 standard errors of the mean: a right estimator fails about once in 100 000 comparisons.
void expect_mean(const at::Tensor& draws, const at::Tensor& expected, const std::string& what) {
  const auto error = draws.std(0) / std::sqrt(static_cast<double>(draws.size(0)));
  const auto deviation = (draws.mean(0) - expected).abs();
  EXPECT_TRUE((deviation <= 4.5 * error + 1e-6).all().item<bool>())
      << what << "\nmean " << draws.mean(0) << "\nexpected " << expected << "\nstandard error " << error;
}

class PerturbedTopk : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20020867); }
};

TEST_F(PerturbedTopk, ValueAndGradientAreUnbiasedAgainstTheExactExpectation) {
  const std::vector<double> s = {0.1, 0.7, 0.4, 0.0};
  const auto exact = exact_winner(s);
  EXPECT_NEAR(exact.probability.sum().item<double>(), 1, 1e-9);
  const auto x = at::tensor({1.0, -2.0, 0.5, 3.0}, at::kDouble).view({1, 4, 1});
  std::vector<at::Tensor> values, gradients;
  for (int seed = 0; seed < 3000; ++seed) {
    const auto scores = at::tensor(s, at::kDouble).unsqueeze(0).requires_grad_();
    const auto pooled = perturbed({{"samples", 4}, {"seed", seed}})->forward(x, scores, 1, std::nullopt);
    values.push_back(pooled.values.detach().flatten());
    gradients.push_back(torch::autograd::grad({pooled.values.sum()}, {scores})[0].flatten());
  }
  expect_mean(at::stack(values), x.flatten().dot(exact.probability), "value");
  expect_mean(at::stack(gradients), at::mv(exact.slope.t(), x.flatten()), "gradient");
}

TEST_F(PerturbedTopk, GradientOfSeveralRowsIsUnbiasedAgainstDifferencesOfManySamples) {
  // Common random numbers: both sides of a difference select under the same noise.
  const auto scores = at::tensor({0.1, 0.7, 0.4, 0.0, 0.5}, at::kDouble).unsqueeze(0);
  const auto x = at::tensor({1.0, -2.0, 0.5, 3.0, -1.0}, at::kDouble).view({1, 5, 1});
  const auto factor = at::tensor({1.0, -0.5}, at::kDouble).view({1, 2, 1});
  for (const bool keep_order : {true, false}) {
    const auto loss = [&](const at::Tensor& at_scores) {
      const auto op = perturbed({{"samples", 100000}, {"seed", 5}, {"keep_order", keep_order}});
      return (op->forward(x, at_scores, 2, std::nullopt).values * factor).sum();
    };
    std::vector<at::Tensor> gradients;
    for (int seed = 0; seed < 500; ++seed) {
      const auto leaf = scores.clone().requires_grad_();
      const auto op = perturbed({{"samples", 50}, {"seed", seed}, {"keep_order", keep_order}});
      const auto pooled = op->forward(x, leaf, 2, std::nullopt);
      gradients.push_back(torch::autograd::grad({(pooled.values * factor).sum()}, {leaf})[0].flatten());
    }
    auto expected = at::zeros({5}, at::kDouble);
    constexpr double step = 0.1;
    for (std::int64_t i = 0; i < 5; ++i) {
      auto shift = at::zeros_like(scores);
      shift[0][i] = step;
      expected[i] = (loss(scores + shift) - loss(scores - shift)).item<double>() / (2 * step);
    }
    const auto draws = at::stack(gradients);
    const auto error = draws.std(0) / std::sqrt(500.0);
    // The differences' bias (step^2) and noise come to less than 0.03.
    EXPECT_TRUE(((draws.mean(0) - expected).abs() <= 4.5 * error + 0.03).all().item<bool>())
        << draws.mean(0) << expected << error;
  }
}

TEST_F(PerturbedTopk, WeightsAreSharesOfTheSamples) {
  const auto rows = at::eye(9, at::kDouble).unsqueeze(0);
  const auto pooled =
      perturbed({{"samples", 8}, {"seed", 1}})->forward(rows, at::rand({1, 9}, at::kDouble), 4, std::nullopt);
  EXPECT_TRUE(at::equal((pooled.values * 8).round(), pooled.values * 8));
  EXPECT_TRUE((pooled.values.sum(1) <= 1).all().item<bool>()) << "a row selected twice in one sample";
}

TEST_F(PerturbedTopk, OneSampleIsAHardSelectionInSourceOrderOrByFallingNoisyScore) {
  const auto x = at::randn({2, 12, 3}, at::kDouble);
  const auto scores = at::rand({2, 12}, at::kDouble);
  const auto ordered = perturbed({{"samples", 1}, {"seed", 3}})->forward(x, scores, 5, std::nullopt);
  const auto ranked = perturbed({{"samples", 1}, {"seed", 3}, {"keep_order", false}})->forward(x, scores, 5, std::nullopt);
  EXPECT_TRUE(at::equal(std::get<0>(ranked.positions.sort(1)), ordered.positions));
  EXPECT_FALSE(at::equal(ranked.positions, ordered.positions));
  EXPECT_TRUE(close(ordered.values, x.gather(1, ordered.positions.unsqueeze(2).expand({2, 5, 3})), 1e-15, 1e-15));
}

TEST_F(PerturbedTopk, ASeedRepeatsItsNoiseAndNoSeedFollowsTheGlobalGenerator) {
  const auto x = at::randn({2, 12, 3}, at::kDouble);
  const auto scores = at::rand({2, 12}, at::kDouble);
  const auto call = [&](const Json& options) { return perturbed(options)->forward(x, scores, 5, std::nullopt).values; };
  EXPECT_TRUE(at::equal(call({{"seed", 1}}), call({{"seed", 1}})));
  EXPECT_FALSE(at::equal(call({{"seed", 1}}), call({{"seed", 2}})));
  EXPECT_FALSE(at::equal(call(Json::object()), call(Json::object())));
  torch::manual_seed(4);
  const auto first = call(Json::object());
  torch::manual_seed(4);
  EXPECT_TRUE(at::equal(first, call(Json::object())));
}

TEST_F(PerturbedTopk, BatchRowsGetNoiseOfTheirOwn) {
  const auto x = at::randn({1, 12, 3}, at::kDouble).expand({2, 12, 3});
  const auto pooled = perturbed({{"seed", 1}})->forward(x, at::full({2, 12}, 0.5, at::kDouble), 5, std::nullopt);
  EXPECT_FALSE(at::equal(pooled.values[0], pooled.values[1]));
}

TEST_F(PerturbedTopk, DeclaresThatItsGradientIsAnEstimate) {
  const auto& variant = pooling_registry().find("perturbed_topk");
  EXPECT_TRUE(variant.capabilities.stochastic);
  EXPECT_TRUE(to_json(variant.capabilities).at("estimated_gradient").get<bool>());
}

}  // namespace
}  // namespace transpool
