#include "runners/measure/ceilings.h"
#include "runners/measure/level.h"
#include "runners/measure/memory.h"
#include "runners/measure/operator_pass.h"
#include "runners/sweep/settings.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transpool {
namespace {

using testing::HasSubstr;

constexpr double mib = 1024 * 1024;

class MeasureTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { install_memory_hook(); }

  static Experiment experiment(const Json& fixed, const std::vector<std::string>& measure) {
    Json values = {{"batch", 2},  {"source_length", 256},    {"pooled_length", 32},
                   {"width", 64}, {"timing.min_samples", 3}, {"timing.max_samples", 5}};
    values.update(fixed);
    return experiment_from_json({{"name", "measure"}, {"level", "operator"}, {"measure", measure}, {"fixed", values}},
                                "measure.json", "cpu");
  }

  static Record measured(const Json& fixed, const std::vector<std::string>& measure) {
    return measure_cell(experiment(fixed, measure).cells.front());
  }

  static double value_of(const Record& record, const std::string& name) {
    const auto* summary = find_summary(record, name);
    EXPECT_NE(summary, nullptr) << name << " of " << record.reason;
    return summary == nullptr ? std::nan("") : summary->value;
  }
};

TEST_F(MeasureTest, TheWorkspaceIsWhatIsNeitherInputNorResult) {
  const auto use = measure_memory(
      [] {
        const auto scratch = at::empty({3 << 20}, at::kByte);
        return std::vector{at::empty({1 << 20}, at::kByte)};
      },
      at::kCPU);
  EXPECT_EQ(use.delta, 4 * mib);
  EXPECT_EQ(use.workspace, 3 * mib);
}

TEST_F(MeasureTest, AVariantThatOnlySlicesNeedsLessWorkspaceThanOneThatSorts) {
  const auto first = measured({{"pooling", "first_k"}, {"pass", "forward"}}, {"memory"});
  const auto sorting = measured({{"pooling", "successive_halving"}, {"pass", "forward"}}, {"memory"});
  EXPECT_LT(value_of(first, "workspace"), value_of(sorting, "workspace"));
  // Sorting 2 x 256 scores in float64 takes the sorted values and their places.
  EXPECT_GE(value_of(sorting, "workspace") * mib, 2 * 256 * (8 + 8));
  EXPECT_LE(value_of(sorting, "workspace"), value_of(sorting, "peak_memory"));
}

TEST_F(MeasureTest, EveryRecordOfOperatorsAndLayersSaysItsWorkspaceAndBackend) {
  for (const auto* kind : {"pooling", "attention"})
    for (const auto* pass : {"forward", "forward+backward"}) {
      const auto record = measured({{"operator", kind}, {"pass", pass}}, {"memory"});
      EXPECT_GE(value_of(record, "workspace"), 0) << kind << " " << pass;
      EXPECT_TRUE(record.details["backend"][kind].is_string());
    }
  const auto layers = experiment_from_json({{"name", "layer"},
                                            {"level", "layer"},
                                            {"measure", {"memory"}},
                                            {"fixed", {{"batch", 1}, {"source_length", 64}, {"width", 32}, {"heads", 2}}}},
                                           "layer.json", "cpu");
  const auto record = measure_cell(layers.cells.front());
  EXPECT_GT(value_of(record, "workspace"), 0);
  EXPECT_TRUE(record.details["backend"]["attention"].is_string());
}

TEST_F(MeasureTest, ABackendThatIsAskedForAndWouldNotRunIsUnsupported) {
  const auto refused = measured({{"pooling", "hard_topk"}, {"backend", "nothing"}}, {"time"});
  EXPECT_EQ(refused.status, Status::unsupported);
  EXPECT_THAT(refused.reason, HasSubstr("\"hard_topk\" runs on backend"));
  EXPECT_THAT(refused.reason, HasSubstr("asked for: \"nothing\""));
  EXPECT_EQ(find_summary(refused, "time"), nullptr);
  const auto plain = measured({{"pooling", "hard_topk"}}, {"time"});
  const auto found = plain.details["backend"]["pooling"].get<std::string>();
  EXPECT_EQ(measured({{"pooling", "hard_topk"}, {"backend", found}}, {"time"}).status, Status::ok);
  EXPECT_EQ(measured({{"operator", "attention"}, {"backend", "nothing"}}, {"time"}).status, Status::unsupported);
}

TEST_F(MeasureTest, AskingForNoBackendKeepsTheIdentityOfOlderRecords) {
  const auto bare = experiment(Json::object(), {"time"}).cells.front().id;
  EXPECT_EQ(experiment({{"backend", nullptr}}, {"time"}).cells.front().id, bare);
  EXPECT_NE(experiment({{"backend", "cpu"}}, {"time"}).cells.front().id, bare);
}

TEST_F(MeasureTest, TheRooflineIsTheBoundOfTheMeasuredCeilings) {
  const auto record = measured({{"pooling", "first_k"}, {"pass", "forward"}}, {"time", "roofline"});
  const auto& roofline = record.details["roofline"];
  const auto reached = measured_ceilings(at::kCPU, at::kFloat);
  EXPECT_EQ(roofline["copy_bytes_per_second"], reached.copy_bytes_per_second);
  const double bound = roofline["bytes"].get<double>() / reached.copy_bytes_per_second * 1e3;
  EXPECT_DOUBLE_EQ(roofline["bound_ms"], bound);
  EXPECT_EQ(roofline["bound_by"], "copy");
  EXPECT_DOUBLE_EQ(value_of(record, "bound_share"), 100 * bound / value_of(record, "time"));
  const auto* share = find_summary(record, "bound_share");
  EXPECT_LE(share->interval->first, share->value);
  EXPECT_GE(share->interval->second, share->value);
  EXPECT_TRUE(share->higher_is_better);
}

TEST_F(MeasureTest, ARooflineNeedsATimeAndAnOperator) {
  EXPECT_THROW(experiment(Json::object(), {"roofline"}), UsageError);
  EXPECT_THROW(experiment_from_json({{"name", "x"}, {"level", "layer"}, {"measure", {"time", "roofline"}}}, "x.json", "cpu"),
               UsageError);
}

TEST_F(MeasureTest, TheBackwardPassMovesGradientsAndReadsAgainWhatTheScoresLearnFrom) {
  PoolingPass pass;
  pass.shape = {.batch = 1, .length = 8, .width = 4, .pooled_length = 2};
  const auto& variant = pooling_registry().find("successive_halving");
  pass.op = variant.make(pooling_registry().select("successive_halving").options);
  const double x = 8 * 4 * 4, scores = 8 * 4, values = 2 * 4 * 4;
  const Cost cost{.bytes_read = x + scores, .bytes_written = values};
  pass.draw();
  EXPECT_EQ(pass.least_bytes(cost), (x + scores + values) + (values + x + scores) + (x + scores));
  pass.backward = false;
  pass.draw();
  EXPECT_EQ(pass.least_bytes(cost), x + scores + values);
  EXPECT_EQ(pass.least_bytes(cost, 0.25), x / 4 + scores + values);
}

}  // namespace
}  // namespace transpool
