#include "operators/pooling/threshold_mask.h"

#include "tests/operators/poolings.h"

#include <gmock/gmock.h>

#include <cmath>

namespace transpool {
namespace {

using testing::HasSubstr;

using Lengths = std::optional<at::Tensor>;

const std::vector<std::string> family = {"sigmoid_threshold", "lapsum", "sparsemap_topk", "sander_p43",
                                         "coordinate_descent"};

std::shared_ptr<const PoolingOperator> make(const std::string& name, double temperature, bool reference = false) {
  return pooling({{"name", name}, {"temperature", temperature}, {"keep_order", false}}, reference);
}

/// Masks (B, k) of the k highest rows by falling score, seen on rows of 1.
at::Tensor masks(const std::string& name, double temperature, const at::Tensor& scores, std::int64_t k,
                 const Lengths& lengths = {}) {
  const auto ones = at::ones({scores.size(0), scores.size(1), 1}, at::kDouble);
  return make(name, temperature)->forward(ones, scores, k, lengths).values.squeeze(2);
}

at::Tensor capped(const at::Tensor& z) { return z.clamp_max(0).exp(); }
at::Tensor capped_slope(const at::Tensor& z) { return z.exp().masked_fill(z >= 0, 0); }
at::Tensor logistic(const at::Tensor& z) { return z.sigmoid(); }
at::Tensor logistic_slope(const at::Tensor& z) { return z.sigmoid() * (1 - z.sigmoid()); }
at::Tensor ramp(const at::Tensor& z) { return z.clamp(0, 1); }
at::Tensor ramp_slope(const at::Tensor& z) { return ((z > 0) & (z < 1)).to(at::kDouble); }

const std::vector<MaskFunction> functions = {{capped, capped_slope, -exponential_reach, 0},
                                             {logistic, logistic_slope, -exponential_reach, exponential_reach},
                                             {ramp, ramp_slope, 0, 1}};

class ThresholdMasks : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20020650); }
};

TEST_F(ThresholdMasks, MasksLieInZeroOneSumToTheRowsKeptAndFollowTheScores) {
  for (const auto& phi : functions)
    for (const double temperature : {1e-6, 1e-3, 0.1, 1.0, 1e6})
      for (const std::int64_t k : {1, 7, 50, 99, 100}) {
        SCOPED_TRACE("temperature " + std::to_string(temperature) + " k " + std::to_string(k));
        const auto scores = at::randn({4, 100}, at::kDouble);
        const auto lengths = lengths_of({100, 60, k, 0});
        const auto mask = threshold_mask(scores, k, lengths, temperature, phi);
        EXPECT_EQ(mask.scalar_type(), at::kDouble);
        EXPECT_TRUE(((mask >= 0) & (mask <= 1)).all().item<bool>());
        EXPECT_TRUE(close(mask.sum(1), lengths.clamp_max(k).to(at::kDouble), 1e-11, 1e-11)) << mask.sum(1);
        const auto padded = at::arange(100).unsqueeze(0) >= lengths.unsqueeze(1);
        EXPECT_TRUE((mask.masked_select(padded) == 0).all().item<bool>());
        const auto falling = mask[0].index_select(0, scores[0].argsort(0, /*descending=*/true));
        EXPECT_TRUE((falling.diff() <= 0).all().item<bool>());
      }
}

TEST_F(ThresholdMasks, AMillionRowsStillSumToK) {
  const auto scores = at::rand({1, 1000000});
  for (const auto& phi : functions) {
    const auto mask = threshold_mask(scores, 1000, std::nullopt, 0.01, phi);
    EXPECT_NEAR(mask.sum().item<double>(), 1000, 1e-8);
  }
}

TEST_F(ThresholdMasks, GradientIsTheDerivativeAndBlindToACommonShift) {
  for (const auto& phi : functions)
    for (const double temperature : {0.05, 1.0}) {
      const auto lengths = lengths_of({11, 6, 3, 0});
      const Differentiable function = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
        return {threshold_mask(in[0], 4, lengths, temperature, phi)};
      };
      const std::vector<at::Tensor> scores = {at::rand({4, 11}, at::kDouble)};
      EXPECT_TRUE(gradients_match_differences(function, scores));
      const auto gradient = gradients_of(function, scores, cotangents_for(function, scores))[0];
      EXPECT_TRUE(close(gradient.sum(1), at::zeros({4}, at::kDouble), 1e-12, 1e-12));
      EXPECT_GT(gradient.abs().max().item<double>(), 1e-3);
      EXPECT_TRUE((gradient.narrow(0, 2, 2) == 0).all().item<bool>()) << "rows that are all kept";
    }
}

TEST_F(ThresholdMasks, KeepingAllRowsGivesMasksOfOneAndNoScoreGradient) {
  for (const auto& name : family)
    for (const Lengths& lengths : {Lengths(), Lengths(lengths_of({5, 3}))}) {
      SCOPED_TRACE(name);
      const auto k = lengths ? 5 : 6;
      const auto values = values_by(make(name, 0.3), k, lengths);
      const std::vector<at::Tensor> inputs = {at::ones({2, 6, 1}, at::kDouble), at::rand({2, 6}, at::kDouble)};
      const auto ones = values(inputs)[0].squeeze(2);
      const auto expected = at::arange(k).unsqueeze(0) < (lengths ? *lengths : lengths_of({6, 6})).unsqueeze(1);
      EXPECT_TRUE(at::equal(ones, expected.to(at::kDouble))) << ones;
      EXPECT_TRUE((gradients_of(values, inputs, cotangents_for(values, inputs))[1] == 0).all().item<bool>());
    }
}

TEST_F(ThresholdMasks, OneOfTwoIsTheFunctionOfHalfTheDifference) {
  const double difference = 0.3, temperature = 0.5, z = difference / temperature;
  const auto scores = row_of({0.1, 0.1 + difference});
  const auto mask = [&](const std::string& name) { return masks(name, temperature, scores, 1).item<double>(); };
  EXPECT_NEAR(mask("sigmoid_threshold"), 1 / (1 + std::exp(-z / 2)), 1e-14);
  EXPECT_NEAR(mask("lapsum"), 1 - std::exp(-z / 2) / 2, 1e-14);
  EXPECT_NEAR(mask("sparsemap_topk"), (1 + z) / 2, 1e-14);
  EXPECT_NEAR(mask("coordinate_descent"), 1 / (1 + std::exp(-z)), 1e-14);
  // y^(1/3) - (1 - y)^(1/3) = z.
  const double y = mask("sander_p43");
  EXPECT_NEAR(std::cbrt(y) - std::cbrt(1 - y), z, 1e-13);
}

TEST_F(ThresholdMasks, MasksSolveTheRegularisedProblem) {
  // Sander et al.: max over y in [0, 1]^n with sum k of <s, y> - T |y|_p^p / p. Moving weight between two rows inside the
  // box cannot help, so that s_i - T y_i^(p - 1) is the same for all of them.
  const auto scores = std::get<0>(at::rand({1, 12}, at::kDouble).sort(1, /*descending=*/true));
  for (const auto& [name, power] : std::map<std::string, double>{{"sparsemap_topk", 1.0}, {"sander_p43", 1.0 / 3}}) {
    const auto mask = masks(name, 0.4, scores, 6).squeeze(0);
    const auto inside = (mask > 1e-6) & (mask < 1);
    ASSERT_GE(inside.sum().item<std::int64_t>(), 2);
    const auto multiplier = (scores[0].narrow(0, 0, 6) - 0.4 * mask.pow(power)).masked_select(inside);
    EXPECT_LT((multiplier.max() - multiplier.min()).item<double>(), 1e-12) << name;
  }
}

TEST_F(ThresholdMasks, CoordinateDescentIsWhatTheIterationConvergesTo) {
  const double temperature = 0.2;
  const auto scores = at::rand({3, 10}, at::kDouble);
  // CoLT5: alternate the multiplier of the sum (a) and those of the caps (b), entropy weight T.
  auto b = -scores;
  at::Tensor a;
  for (int i = 0; i < 5000; ++i) {
    a = temperature * (std::log(4.0) - ((scores + b) / temperature).logsumexp(1, /*keepdim=*/true));
    b = -(scores + a).relu();
  }
  const auto expected = std::get<0>(((scores + a + b) / temperature).exp().sort(1, /*descending=*/true)).narrow(1, 0, 4);
  EXPECT_TRUE(close(masks("coordinate_descent", temperature, scores, 4), expected, 1e-6, 1e-6));
  EXPECT_TRUE(close(masks("coordinate_descent", temperature, scores, 1),
                    std::get<0>((scores / temperature).softmax(1).max(1, /*keepdim=*/true)), 1e-13, 1e-13));
}

TEST_F(ThresholdMasks, ClippedMasksAreExactlyZeroAndOneAwayFromTheThreshold) {
  const auto scores = row_of({9, 8, 1.2, 1.1, 1.0, 0.9, -3});
  for (const auto& name : {"sparsemap_topk", "sander_p43"}) {
    const auto mask = masks(name, 1.0, scores, 7 - 3).squeeze(0);
    EXPECT_TRUE((mask.narrow(0, 0, 2) == 1).all().item<bool>());
    EXPECT_TRUE(((mask.narrow(0, 2, 2) > 0) & (mask.narrow(0, 2, 2) < 1)).all().item<bool>());
    // The gap behind the second row is wider than the rise: nothing moves.
    const auto values = values_by(make(name, 1.0), 2);
    const std::vector<at::Tensor> inputs = {at::ones({1, 7, 1}, at::kDouble), scores};
    EXPECT_TRUE((values(inputs)[0] == 1).all().item<bool>());
    EXPECT_TRUE((gradients_of(values, inputs, cotangents_for(values, inputs))[1] == 0).all().item<bool>());
  }
}

TEST_F(ThresholdMasks, AGapAsWideAsTheRiseIsHardWhateverItsLastDigit) {
  for (const auto& name : {"sparsemap_topk", "sander_p43"})
    for (const double gap : {0.1, 0.5 - 0.4, std::nextafter(0.1, 0.0), std::nextafter(0.1, 1.0)}) {
      const auto values = values_by(make(name, 0.1), 2);
      const std::vector<at::Tensor> inputs = {at::ones({1, 4, 1}, at::kDouble), row_of({gap, gap, 0.0, 0.0})};
      EXPECT_TRUE((values(inputs)[0] == 1).all().item<bool>());
      EXPECT_TRUE((gradients_of(values, inputs, cotangents_for(values, inputs))[1] == 0).all().item<bool>());
    }
}

TEST_F(ThresholdMasks, TiesAtTheCapHaveAGradientOnlyWhereMasksMove) {
  // Three rows at 1 - e^(-1 / T) / 3: at 0.03 that is 1 to the last digit, and stays so whichever of the scores moves.
  const std::vector<at::Tensor> scores = {row_of({400, 400, 400, 399, 0.5, -400, -400})};
  const auto cotangent = at::tensor({0.3, -1.1, 0.7}, at::kDouble).view({1, 3, 1});
  const auto gradient = [&](double temperature, bool reference) {
    const Differentiable values = [&, op = make("coordinate_descent", temperature, reference)](
                                      const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      return {op->forward(at::ones({1, 7, 1}, at::kDouble), in[0], 3, std::nullopt).values};
    };
    return gradients_of(values, scores, {cotangent})[0];
  };
  for (double temperature = 0.02; temperature < 0.1; temperature += 0.002)
    EXPECT_TRUE(close(gradient(temperature, false), gradient(temperature, true), 1e-9, 1e-10)) << temperature;
  for (const std::int64_t moved : {0, 1, 2, 3})
    for (const double by : {1e-6, -1e-6}) {
      auto there = scores[0].clone();
      there[0][moved] += by;
      EXPECT_TRUE(close(masks("coordinate_descent", 0.03, there, 3), at::ones({1, 3}, at::kDouble), 1e-14, 0));
    }
  EXPECT_EQ(gradient(0.03, false).abs().max().item<double>(), 0);
  EXPECT_GT(gradient(0.05, false).abs().max().item<double>(), 1);
}

TEST_F(ThresholdMasks, TiedScoresShareEvenly) {
  for (const auto& name : family) {
    SCOPED_TRACE(name);
    for (const double level : {0.0, 0.7, 9999.0, -9999.0})
      EXPECT_TRUE(close(masks(name, 0.1, at::full({1, 9}, level, at::kDouble), 4), at::full({1, 4}, 4.0 / 9, at::kDouble),
                        1e-13, 1e-13));
    const auto mask = masks(name, 1e-3, row_of({0.9, 0.5, 0.5, 0.5, 0.1}), 2);
    EXPECT_TRUE(close(mask, row_of({1, 1.0 / 3}), 1e-9, 1e-9)) << mask;
  }
}

TEST_F(ThresholdMasks, ExtremeTemperaturesEqualTheReference) {
  const auto x = at::randn({3, 40, 2}, at::kDouble);
  const auto scores = at::randn({3, 40}, at::kDouble) * row_of({1e4, 1.0, 1e-6}).t();
  for (const auto& name : family)
    for (const double temperature : {1e-6, 1e-2, 1.0, 1e2, 1e6}) {
      SCOPED_TRACE(name + " temperature " + std::to_string(temperature));
      const auto function = [&](bool reference) { return values_by(make(name, temperature, reference), 7); };
      EXPECT_TRUE(close(function(false)({x, scores})[0], function(true)({x, scores})[0], 1e-10, 1e-10));
      const auto cotangents = cotangents_for(function(false), {x, scores});
      const auto found = gradients_of(function(false), {x, scores}, cotangents)[1];
      const auto expected = gradients_of(function(true), {x, scores}, cotangents)[1];
      EXPECT_TRUE(finite(found));
      EXPECT_TRUE(close(found * temperature, expected * temperature, 1e-8, 1e-9));
    }
}

TEST_F(ThresholdMasks, WarmMasksAreUniformAndColdOnesHard) {
  const auto scores = at::rand({2, 20}, at::kDouble);
  for (const auto& name : family) {
    EXPECT_TRUE(close(masks(name, 1e6, scores, 5), at::full({2, 5}, 0.25, at::kDouble), 1e-4, 1e-4)) << name;
    EXPECT_TRUE(at::equal(masks(name, 1e-6, scores, 5), at::ones({2, 5}, at::kDouble))) << name;
  }
}

TEST_F(ThresholdMasks, TemperaturesOutOfRangeAreRefused) {
  for (const auto& name : family) {
    for (const double temperature : {0.0, -1.0, 1e7})
      EXPECT_THAT(message_of([&] { make(name, temperature); }),
                  testing::AllOf(HasSubstr("temperature"), HasSubstr("out of range"), HasSubstr("1e-06 to 1000000")));
  }
}

}  // namespace
}  // namespace transpool
