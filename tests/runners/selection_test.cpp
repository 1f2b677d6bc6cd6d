#include "runners/measure/selection.h"

#include "runners/measure/level.h"
#include "runners/measure/operator_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <cmath>
#include <fstream>

namespace transpool {
namespace {

using testing::HasSubstr;

std::shared_ptr<const PoolingOperator> pooling(const Json& value) {
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

at::Tensor rows(const std::vector<std::int64_t>& values) { return at::tensor(values, at::kLong).unsqueeze(0); }

Cell selection_cell(const Json& settings, const std::string& measure = "selection") {
  Json json = {{"name", "t"},
               {"level", "operator"},
               {"measure", {measure}},
               {"fixed",
                {{"batch", 4},
                 {"width", 8},
                 {"source_length", 32},
                 {"pooled_length", 4},
                 {"selection.draws", 3},
                 {"selection.noise_draws", 200}}}};
  json["fixed"].update(settings);
  return experiment_from_json(json, "test", "cpu").cells.front();
}

double figure(const Record& record, const std::string& name) {
  const auto* summary = find_summary(record, name);
  return summary == nullptr ? std::nan("") : summary->value;
}

TEST(Selection, OverlapIsTheShareOfHardRowsThatLeadOutputs) {
  EXPECT_DOUBLE_EQ(overlap(rows({3, 1, 5, 0}), rows({1, 1, 3, 7}), 8).item<double>(), 0.5);
  EXPECT_DOUBLE_EQ(overlap(rows({3, 1, -1, -1}), rows({3, 1, -1, -1}), 8).item<double>(), 1) << "padded rows do not count";
}

TEST(Selection, MatchedCosineTakesTheNearestOutputOfEachHardRow) {
  const auto x = at::eye(4, at::kDouble).unsqueeze(0);
  const auto values = at::stack({x[0][2], (x[0][0] + x[0][1])}).unsqueeze(0);
  EXPECT_NEAR(matched_cosine(x, values, rows({2, 0})).item<double>(), (1 + std::sqrt(0.5)) / 2, 1e-12);
}

TEST(Selection, WeightsFromBlocksOfColumnsAreThoseOfOnePass) {
  torch::manual_seed(1);
  const auto op = pooling("successive_halving");
  const auto scores = at::rand({3, 17}, at::kDouble);
  const auto lengths = std::optional(at::tensor({17, 9, 2}, at::kLong));
  const auto whole = weight_matrix(*op, scores, 4, lengths, 17, 1);
  EXPECT_TRUE(at::equal(weight_matrix(*op, scores, 4, lengths, 5, 1), whole));
  const auto x = at::randn({3, 17, 6}, at::kDouble);
  EXPECT_TRUE(at::allclose(at::matmul(whole, x), op->forward(x, scores, 4, lengths).values));
}

TEST(Selection, EffectiveRowsCountACopyAsOneAndAMeanAsAll) {
  const auto weights =
      at::stack({at::one_hot(at::scalar_tensor(2, at::kLong), 5).to(at::kDouble) * 0.3, at::full({5}, 0.2, at::kDouble)})
          .unsqueeze(0);
  const auto found = effective_rows(weights)[0];
  EXPECT_NEAR(found[0].item<double>(), 1, 1e-12) << "a gate is no spread";
  EXPECT_NEAR(found[1].item<double>(), 5, 1e-12);
}

TEST(Selection, SmoothedGradientEqualsDifferencesOfTheSmoothedHardObjective) {
  torch::manual_seed(2);
  constexpr std::int64_t n = 5, k = 2, draws = 400000;
  const auto scores = at::rand({1, n}, at::kDouble);
  const auto utility = at::randn({1, n}, at::kDouble);
  const auto width = at::full({1, 1}, 0.4, at::kDouble);
  const auto found = smoothed_gradient(scores, utility, k, std::nullopt, width, 20000)[0];
  const auto noise = 0.4 * at::randn({draws, n}, at::kDouble);
  const auto objective = [&](const at::Tensor& s) {
    const auto top = std::get<1>((s + noise).topk(k, 1));
    return utility.expand({draws, n}).gather(1, top).sum(1).mean().item<double>();
  };
  constexpr double step = 0.1;
  for (std::int64_t i = 0; i < n; ++i) {
    auto change = at::zeros({1, n}, at::kDouble);
    change[0][i] = step;
    const double numeric = (objective(scores + change) - objective(scores - change)) / (2 * step);
    EXPECT_NEAR(found[i].item<double>(), numeric, 0.03) << i;
  }
}

TEST(Selection, SmoothedGradientIsZeroInPaddedRowsAndWhereAllRowsAreKept) {
  torch::manual_seed(3);
  const auto scores = at::rand({2, 9}, at::kDouble), utility = at::randn({2, 9}, at::kDouble);
  const auto width = at::full({2, 1}, 0.3, at::kDouble);
  const auto found = smoothed_gradient(scores, utility, 3, at::tensor({6, 2}, at::kLong), width, 50);
  EXPECT_TRUE(found.isfinite().all().item<bool>());
  EXPECT_EQ(found[0].narrow(0, 6, 3).abs().max().item<double>(), 0);
  EXPECT_GT(found[0].abs().max().item<double>(), 0);
  EXPECT_EQ(found[1].abs().max().item<double>(), 0) << "two valid rows, three kept: no score matters";
  EXPECT_EQ(smoothed_gradient(scores, utility, 9, std::nullopt, width, 5).abs().max().item<double>(), 0);
}

TEST(Selection, HardTopkSelectsPerfectlyAndOnlyKeptRowsLearn) {
  const auto record = measure_cell(selection_cell({{"pooling", "hard_topk"}}));
  ASSERT_EQ(record.status, Status::ok) << record.reason;
  EXPECT_NEAR(figure(record, "selection_overlap"), 1, 1e-9);
  EXPECT_NEAR(figure(record, "selection_cosine"), 1, 1e-6);
  EXPECT_NEAR(figure(record, "selection_mass"), 1, 1e-6);
  EXPECT_NEAR(figure(record, "selection_effective_rows"), 1, 1e-6);
  EXPECT_LE(figure(record, "gradient_useful"), 4.0 / 32);
  EXPECT_EQ(find_summary(record, "selection_overlap")->samples.size(), 3U);
}

TEST(Selection, SuccessiveHalvingIsSofterButLearnsInEveryRow) {
  const auto hard = measure_cell(selection_cell({{"pooling", "hard_topk"}}));
  const auto soft = measure_cell(selection_cell({{"pooling", {{"name", "successive_halving"}, {"base", 3}}}}));
  ASSERT_EQ(soft.status, Status::ok) << soft.reason;
  EXPECT_LT(figure(soft, "selection_cosine"), 0.9);
  EXPECT_GT(figure(soft, "selection_effective_rows"), 2);
  EXPECT_GT(figure(soft, "gradient_useful"), 0.5);
  EXPECT_GT(figure(soft, "gradient_cosine"), 0.1);
}

TEST(Selection, AnOperatorWithoutScoreGradientHasNoGradientToJudge) {
  const auto record = measure_cell(selection_cell({{"pooling", {{"name", "hard_topk"}, {"gradient", "none"}}}}));
  ASSERT_EQ(record.status, Status::ok) << record.reason;
  EXPECT_EQ(figure(record, "gradient_useful"), 0);
  EXPECT_EQ(find_summary(record, "gradient_cosine"), nullptr);
}

TEST(Selection, WeightsThatCostTooMuchAreLeftOutAndSaidSo) {
  const auto record = measure_cell(selection_cell({{"selection.weight_gflop", 0}}));
  ASSERT_EQ(record.status, Status::ok) << record.reason;
  EXPECT_EQ(find_summary(record, "selection_effective_rows"), nullptr);
  EXPECT_EQ(record.details["selection"]["batch_rows_weighed"], 0);
}

TEST(Selection, RepeatsForASeed) {
  const auto cell = selection_cell({{"lengths", "random"}, {"scores", "trained_like"}});
  const auto first = measure_cell(cell), second = measure_cell(cell);
  ASSERT_EQ(first.status, Status::ok) << first.reason;
  for (const auto& summary : first.summaries) EXPECT_EQ(summary.value, figure(second, summary.name)) << summary.name;
}

TEST(Selection, EveryDistributionOfScoresIsAsDescribed) {
  torch::manual_seed(4);
  const auto draw = [](const char* name) { return draw_scores(name, 4, 4096, at::kFloat); };
  const auto high = [&](const char* name) { return (draw(name) > 0.5).to(at::kDouble).mean().item<double>(); };
  EXPECT_NEAR(high("uniform"), 0.5, 0.02);
  EXPECT_NEAR(high("gaussian"), 0.31, 0.02);
  EXPECT_NEAR(high("two_peaked"), 0.0625, 0.01);
  EXPECT_NEAR(high("trained_like"), 0.0625, 0.01);
  EXPECT_LT(draw("all_low").max().item<double>(), 2e-3);
  const auto near = draw("near_ties");
  EXPECT_LT((near.max() - near.min()).item<double>(), 1.1e-4);
}

TEST(Selection, IsRefusedWhereItMeansNothing) {
  const auto complaint = [](const Json& json) {
    try {
      experiment_from_json(json, "test", "cpu");
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(complaint({{"name", "t"}, {"level", "model"}, {"measure", {"selection"}}}), HasSubstr("level operator only"));
  EXPECT_THAT(
      complaint({{"name", "t"}, {"level", "operator"}, {"measure", {"selection"}}, {"fixed", {{"operator", "attention"}}}}),
      HasSubstr("pooling operators only"));
}

TEST(Selection, HowItWouldBeMeasuredTellsNoCellsApartThatDoNotMeasureIt) {
  EXPECT_EQ(selection_cell({{"selection.draws", 3}}, "time").id, selection_cell({{"selection.draws", 4}}, "time").id);
  EXPECT_NE(selection_cell({{"selection.draws", 3}}).id, selection_cell({{"selection.draws", 4}}).id);
}

}  // namespace
}  // namespace transpool
