#include "models/encoder.h"
#include "runners/measure/level.h"

#include <gmock/gmock.h>

namespace transpool {
namespace {

using testing::HasSubstr;

int fused_calls = 0;

const RegisterFusedPooling form_of_the_test({
    "norm",
    "first_k",
    [](const Scorer&, const Options&) -> FusedPooling {
      return [](const ScorerInput& in, std::int64_t k) -> ScoredPooled {
        ++fused_calls;
        const auto positions = torch::arange(k).expand({in.x.size(0), k});
        return {{in.x.narrow(1, 0, k) + 1, torch::zeros({in.x.size(0), k}), positions}, torch::zeros({2, in.x.size(1)})};
      };
    },
    [](const at::Device& device, const PoolingShape& shape, at::ScalarType precision) {
      return std::string(device.is_cpu() && shape.width == 4 && precision == at::kFloat ? "test" : "");
    },
});

TEST(FusedPooling, IsFoundByTheNamesOfBoth) {
  ASSERT_NE(find_fused_pooling("linear", "successive_halving"), nullptr);
  EXPECT_EQ(find_fused_pooling("linear", "successive_halving")->pooling, "successive_halving");
  EXPECT_EQ(find_fused_pooling("mlp", "successive_halving"), nullptr);
  EXPECT_EQ(find_fused_pooling("linear", "hard_topk"), nullptr);
}

TEST(FusedPooling, TwoFormsOfTheSamePairAreAnErrorThatNamesIt) {
  try {
    RegisterFusedPooling({"norm", "first_k"});
    FAIL();
  } catch (const std::logic_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("scorer \"norm\" and pooling operator \"first_k\" have two fused forms"));
  }
}

TEST(FusedPooling, RunsWhereItTakesTheRowsAndIsNotSwitchedOff) {
  fused_calls = 0;
  const auto x = torch::randn({2, 6, 4}), wide = torch::randn({2, 6, 5});
  const auto values = PoolingLayer(4, "norm", "first_k")->forward({x}, 3).pooled.values;
  EXPECT_TRUE(torch::equal(values, x.narrow(1, 0, 3) + 1));
  EXPECT_EQ(fused_calls, 1);
  EXPECT_TRUE(
      torch::equal(PoolingLayer(4, "norm", "first_k", /*fuse=*/false)->forward({x}, 3).pooled.values, x.narrow(1, 0, 3)));
  EXPECT_TRUE(torch::equal(PoolingLayer(5, "norm", "first_k")->forward({wide}, 3).pooled.values, wide.narrow(1, 0, 3)));
  EXPECT_TRUE(torch::equal(PoolingLayer(4, "norm", "first_k")->forward({x.to(at::kDouble)}, 3).pooled.values,
                           x.narrow(1, 0, 3).to(at::kDouble)));
  EXPECT_EQ(fused_calls, 1);
}

TEST(FusedPooling, DoesNotRunWhereOtherRowsAreScoredThanPooled) {
  fused_calls = 0;
  const auto seen = torch::randn({2, 6, 4}), x = torch::randn({2, 6, 4});
  EXPECT_TRUE(torch::equal(PoolingLayer(4, "norm", "first_k")->forward({seen}, x, 3).pooled.values, x.narrow(1, 0, 3)));
  EXPECT_EQ(fused_calls, 0);
}

TEST(FusedPooling, RecordsSayWhetherItRuns) {
  const PoolingShape takes{2, 6, 4, 3, at::kFloat}, wide{2, 6, 5, 3, at::kFloat};
  const auto found = [](bool fuse, const PoolingShape& shape) {
    return pooling_layer_backends("norm", "first_k", fuse, at::kCPU, shape, at::kFloat)["fused_pooling"];
  };
  EXPECT_EQ(found(true, takes), "test");
  EXPECT_EQ(found(false, takes), "off");
  EXPECT_EQ(found(true, wide), "off");
  EncoderConfig config;
  config.layer.width = 4;
  config.layer.heads = 1;
  config.scorer = "norm";
  config.pooling = "first_k";
  EXPECT_FALSE(encoder_backends(config, at::kCPU, 8, at::kFloat).contains("fused_pooling"));
  config.widths = {{0, 4}, {1, 2}};
  EXPECT_EQ(encoder_backends(config, at::kCPU, 8, at::kFloat)["fused_pooling"], "test");
  EXPECT_EQ(encoder_backends(config, at::kCPU, 8, at::kBFloat16)["fused_pooling"], "off");
  config.fuse_pooling = false;
  EXPECT_EQ(encoder_backends(config, at::kCPU, 8, at::kFloat)["fused_pooling"], "off");
}

TEST(FusedPooling, OfAnEncoderIsInItsConfigurationAndOnWhereThatIsOlder) {
  EncoderConfig config;
  config.attention = {{"name", "full"}};
  config.fuse_pooling = false;
  auto json = to_json(config);
  EXPECT_EQ(json["fused_pooling"], "off");
  EXPECT_FALSE(encoder_config_from_json(json, {}).fuse_pooling);
  json.erase("fused_pooling");
  EXPECT_TRUE(encoder_config_from_json(json, {}).fuse_pooling);
}

TEST(PoolingLayers, OnTheCpuScoreAndPoolInTurn) {
  torch::manual_seed(1);
  PoolingLayer layer(8, "linear", "successive_halving");
  const auto x = torch::randn({2, 13, 8});
  const auto lengths = torch::tensor({13, 6}, torch::kLong);
  const auto found = layer->forward({x, lengths}, 4);
  const auto scores = layer->scorer().forward({x, lengths});
  const auto pooled = layer->pooling().forward(x, scores, 4, lengths);
  EXPECT_TRUE(torch::equal(found.scores, scores));
  EXPECT_TRUE(torch::equal(found.pooled.values, pooled.values));
  EXPECT_TRUE(torch::equal(found.pooled.positions, pooled.positions));
}

Record measured(const Json& fixed) {
  Json values = {{"batch", 2}, {"source_length", 40},     {"pooled_length", 7},
                 {"width", 8}, {"timing.max_samples", 3}, {"timing.min_samples", 3}};
  values.update(fixed);
  const Json measure = {"time", "flops"};
  const auto experiment = experiment_from_json(
      {{"name", "layers"}, {"level", "pooling_layer"}, {"measure", measure}, {"fixed", values}}, "layers.json", "cpu");
  return measure_cell(experiment.cells.front());
}

TEST(PoolingLayers, EachPartIsCheckedAndTimed) {
  for (const auto* part : {"layer", "pooling", "scorer"})
    for (const auto* pass : {"forward", "forward+backward"})
      for (const auto* dtype : {"float64", "float32", "bfloat16"}) {
        const auto record = measured({{"part", part}, {"pass", pass}, {"dtype", dtype}, {"lengths", "random"}});
        EXPECT_EQ(record.status, Status::ok) << part << " " << pass << " " << dtype << ": " << record.reason;
        EXPECT_NE(find_summary(record, "time"), nullptr);
        EXPECT_EQ(record.details["backend"]["fused_pooling"], "off");
        EXPECT_EQ(record.details["flops"]["unexplained"], 0) << part << " " << pass << record.details["flops"];
      }
}

TEST(PoolingLayers, WhoseFusedFormIsWrongAreIncorrect) {
  const auto record = measured({{"scorer", "norm"}, {"pooling", "first_k"}, {"width", 4}});
  EXPECT_EQ(record.status, Status::incorrect);
  EXPECT_THAT(record.reason, HasSubstr("values: relative error"));
  EXPECT_EQ(measured({{"scorer", "norm"}, {"pooling", "first_k"}, {"width", 4}, {"fused_pooling", "off"}}).status,
            Status::ok);
}

TEST(PoolingLayers, FusedPoolingIsAutoOrOff) {
  try {
    measured({{"fused_pooling", "on"}});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("fused_pooling"));
    EXPECT_THAT(error.what(), HasSubstr("auto, off"));
  }
}

}  // namespace
}  // namespace transpool
