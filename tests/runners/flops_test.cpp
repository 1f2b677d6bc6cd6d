#include "operators/attention/attention.h"
#include "runners/measure/flop_counter.h"
#include "runners/measure/level.h"
#include "runners/sweep/settings.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

namespace transpool {
namespace {

Cell cell_of(const std::string& level, const Json& values) {
  Json given = values;
  const auto specs = settings_of(level);
  for (const auto& spec : specs) {
    if (given.contains(spec.name)) given[spec.name] = resolve_setting(spec, given[spec.name], {});
    else if (spec.type == OptionType::variant && !spec.fallback.is_null())
      given[spec.name] = resolve_setting(spec, spec.fallback, {});
  }
  Cell cell;
  cell.level = level;
  cell.measure = {"flops"};
  cell.device = "cpu";
  cell.values = Options(specs, given, "setting", {});
  return cell;
}

double unexplained_share(const Record& record) {
  EXPECT_EQ(record.status, Status::ok) << record.reason;
  return std::abs(record.details["flops"]["unexplained_share"].get<double>());
}

TEST(FlopCounter, CountsAMatrixProductOnce) {
  const auto a = torch::randn({3, 5}), b = torch::randn({5, 7});
  EXPECT_EQ(count_flops([&] { torch::matmul(a, b); }).total, 2 * 3 * 5 * 7);
  EXPECT_EQ(count_flops([&] { torch::mv(a, torch::randn({5})); }).total, 2 * 3 * 5);
}

TEST(DeclaredFlops, AgreeWithTheObservedOnesForEveryPoolingOperator) {
  for (const auto* name : {"hard_topk", "successive_halving", "successive_halving_rounds"})
    for (const auto* pass : {"forward", "forward+backward"}) {
      const auto cell = cell_of("operator", {{"operator", "pooling"},
                                             {"pooling", name},
                                             {"pass", pass},
                                             {"batch", 2},
                                             {"source_length", 37},
                                             {"pooled_length", 5},
                                             {"width", 8}});
      EXPECT_LT(unexplained_share(measure_cell(cell)), 1e-3) << name << " " << pass;
    }
}

TEST(DeclaredFlops, AgreeWithTheObservedOnesForEveryAttentionOperator) {
  for (const auto& attention :
       {Json("full"), Json("full_math"), Json{{"name", "blockwise"}, {"chunk", 8}},
        Json{{"name", "sliding_window"}, {"window", 5}, {"global_tokens", 2}},
        Json{{"name", "sliding_window"}, {"window", 64}}, Json{{"name", "lsh"}, {"bucket", 8}, {"rounds", 3}, {"seed", 1}},
        Json{{"name", "lsh"}, {"bucket", 64}}, Json{{"name", "linformer"}, {"projected_length", 6}},
        Json{{"name", "linformer"}, {"projected_length", 6}, {"projection", "random"}}, Json("efficient")})
    for (const bool causal : {false, true})
      for (const auto* lengths : {"full", "random"}) {
        if (causal && !attention_registry().select(attention).variant->capabilities.causal) continue;
        const auto cell = cell_of("operator", {{"operator", "attention"},
                                               {"attention", attention},
                                               {"causal", causal},
                                               {"lengths", lengths},
                                               {"batch", 2},
                                               {"source_length", 37},
                                               {"width", 16},
                                               {"heads", 2}});
        EXPECT_LT(unexplained_share(measure_cell(cell)), 1e-3) << attention << causal << lengths;
      }
}

TEST(DeclaredFlops, AgreeWithTheObservedOnesForEveryEncoderAndLevel) {
  for (const std::string level : {"layer", "encoder", "model", "training", "generation"})
    for (const auto* encoder : {"vanilla", "blockwise", "transpooler", "pyramidion", "deep_pyramidion", "pruner"}) {
      Json values = {{"encoder", encoder}, {"batch", 2},  {"source_length", 32}, {"pooled_length", 8},
                     {"chunk", 8},         {"width", 16}, {"heads", 2},          {"feed_forward", 32}};
      if (level != "layer") values["vocabulary"] = 40;
      if (level != "layer" && level != "encoder") values["target_length"] = 6;
      EXPECT_LT(unexplained_share(measure_cell(cell_of(level, values))), 1e-3) << level << " " << encoder;
    }
}

}  // namespace
}  // namespace transpool
