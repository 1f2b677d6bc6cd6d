#include "models/encoders/encoder_variant.h"
#include "models/generation.h"
#include "models/seq2seq.h"

#include <gtest/gtest.h>

namespace transpool {
namespace {

EncoderRequest request(std::int64_t layers = 2) {
  EncoderRequest request;
  request.base.layer = {.width = 16, .heads = 2, .feed_forward = 32, .dropout = 0.0};
  request.base.layers = layers;
  request.source_length = 32;
  request.pooled_length = 8;
  request.chunk = 8;
  return request;
}

EncoderConfig configure(const Json& value, EncoderRequest from) {
  const auto selection = encoder_registry().select(value);
  return selection.variant->configure(std::move(from), selection.options);
}

TEST(HalvingSchedule, SpreadsHalvingsOverLayersAndEndsAtThePooledLength) {
  EXPECT_EQ(halving_schedule(8192, 512, 2), (std::map<std::int64_t, std::int64_t>{{0, 2048}, {1, 512}}));
  EXPECT_EQ(halving_schedule(8192, 512, 6),
            (std::map<std::int64_t, std::int64_t>{{0, 4096}, {1, 2048}, {2, 1024}, {3, 512}, {4, 512}, {5, 512}}));
  EXPECT_EQ(halving_schedule(100, 30, 1), (std::map<std::int64_t, std::int64_t>{{0, 30}}));
}

TEST(HalvingSchedule, KeepsToChosenLayers) {
  EXPECT_EQ(halving_schedule(8192, 512, std::vector<std::int64_t>{1, 4}),
            (std::map<std::int64_t, std::int64_t>{{1, 2048}, {4, 512}}));
}

std::map<std::int64_t, std::int64_t> widths_of(const Json& encoder, std::int64_t n, std::int64_t k, std::int64_t layers) {
  auto from = request(layers);
  from.source_length = n;
  from.pooled_length = k;
  return configure(encoder, from).widths;
}

TEST(Encoders, DeepPyramidionHalvesAfterItsFirstLayersOrTheChosenOnes) {
  using Widths = std::map<std::int64_t, std::int64_t>;
  EXPECT_EQ(widths_of("deep_pyramidion", 8192, 512, 2), (Widths{{0, 4096}, {1, 2048}, {2, 1024}, {3, 512}}));
  EXPECT_EQ(configure("deep_pyramidion", request()).layers, 6);
  EXPECT_EQ(widths_of({{"name", "deep_pyramidion"}, {"halve_after", {5, 1}}}, 8192, 512, 2), (Widths{{1, 2048}, {5, 512}}));
  EXPECT_EQ(widths_of({{"name", "deep_pyramidion"}, {"layers", 2}}, 8192, 512, 6), (Widths{{0, 2048}, {1, 512}}));
  for (const Json& wrong : {Json{6}, Json{-1}, Json{1, 1}, Json{"0"}, Json::array()})
    EXPECT_THROW(widths_of({{"name", "deep_pyramidion"}, {"halve_after", wrong}}, 64, 8, 2), UsageError) << wrong;
}

TEST(Encoders, FunnelHalvesBetweenBlocksAndPowerBertAfterEachLayer) {
  using Widths = std::map<std::int64_t, std::int64_t>;
  EXPECT_EQ(widths_of("funnel", 512, 128, 6), (Widths{{1, 256}, {3, 128}}));
  EXPECT_EQ(widths_of("funnel", 512, 32, 2), (Widths{{0, 128}, {1, 32}}));
  EXPECT_EQ(widths_of({{"name", "funnel"}, {"halve_after", {0}}}, 512, 128, 6), (Widths{{0, 128}}));
  EXPECT_EQ(widths_of("power_bert", 512, 64, 3), (Widths{{0, 256}, {1, 128}, {2, 64}}));
  EXPECT_EQ(widths_of({{"name", "power_bert"}, {"widths", {{"1", 100}}}}, 512, 64, 3), (Widths{{1, 100}}));
}

TEST(Encoders, EveryNamedEncoderRunsForwardAndBackward) {
  for (const auto& name : encoder_registry().names()) {
    torch::manual_seed(1);
    const auto config = configure(name, request());
    check_encoder(config, 32, "cpu", at::kFloat);
    Encoder encoder(config);
    const auto x = torch::randn({2, 32, 16}).set_requires_grad(true);
    const auto encoded = encoder->forward(x, std::nullopt);
    EXPECT_EQ(encoded.memory.size(1), encoder_lengths(config, 32).back()) << name;
    encoded.memory.square().sum().backward();
    for (const auto& parameter : encoder->named_parameters())
      EXPECT_TRUE(parameter.value().grad().defined()) << name << " " << parameter.key();
  }
}

TEST(Encoders, PaddedRowsDoNotChangeTheMemory) {
  for (const auto& name : encoder_registry().names()) {
    torch::manual_seed(2);
    Encoder encoder(configure(name, request()));
    encoder->eval();
    const auto x = torch::randn({2, 32, 16});
    auto changed = x.clone();
    changed.narrow(1, 20, 12).normal_();
    const auto lengths = torch::tensor({20, 20}, torch::kLong);
    const auto a = encoder->forward(x, lengths);
    const auto b = encoder->forward(changed, lengths);
    const auto rows = std::min<std::int64_t>(a.memory.size(1), a.lengths ? (*a.lengths)[0].item<std::int64_t>() : 32);
    EXPECT_TRUE(torch::allclose(a.memory.narrow(1, 0, rows), b.memory.narrow(1, 0, rows), 1e-5, 1e-6)) << name;
  }
}

TEST(Pruner, TheLossReachesItsScorerAndItsLayersThroughThePickedRows) {
  for (const auto& pooling : {Json("successive_halving"), Json{{"name", "hard_topk"}, {"gradient", "gated"}}}) {
    torch::manual_seed(5);
    Encoder encoder(configure(Json{{"name", "pruner"}, {"pooling", pooling}, {"pruner_width", 8}}, request()));
    const auto lengths = torch::tensor({32, 20}, torch::kLong);
    encoder->forward(torch::randn({2, 32, 16}), lengths).memory.square().sum().backward();
    int seen = 0;
    for (const auto& parameter : encoder->named_parameters()) {
      if (parameter.key().rfind("pruner.", 0) != 0) continue;
      ++seen;
      ASSERT_TRUE(parameter.value().grad().defined()) << parameter.key();
      EXPECT_GT(parameter.value().grad().abs().max().item<double>(), 0) << parameter.key();
    }
    EXPECT_GT(seen, 10);
  }
}

TEST(Pruner, PicksRowsOfTheEmbeddedSourceWhoseScoresAreHighest) {
  torch::manual_seed(6);
  const Json salient = {5, 6, 7};
  Encoder encoder(configure(Json{{"name", "pruner"},
                                 {"pooling", {{"name", "hard_topk"}, {"gradient", "none"}}},
                                 {"scorer", {{"name", "oracle"}, {"salient", salient}}},
                                 {"pooled_length", 3}},
                            request()));
  encoder->eval();
  const auto tokens = torch::tensor({9, 5, 9, 9, 7, 9, 6, 9}, torch::kLong).view({1, 8});
  const auto x = torch::randn({1, 8, 16});
  const auto encoded = encoder->forward(x, std::nullopt, tokens);
  EXPECT_EQ(encoded.memory.size(1), 3);
  EXPECT_TRUE(torch::equal(std::get<0>(encoded.tokens->sort()), torch::tensor({5, 6, 7}, torch::kLong).view({1, 3})));
  // The task encoder sees those rows alone: what the others hold changes nothing.
  auto changed = x.clone();
  for (const std::int64_t row : {0, 2, 3, 5, 7}) changed.select(1, row).normal_();
  EXPECT_TRUE(torch::equal(encoder->forward(changed, std::nullopt, tokens).memory, encoded.memory));
}

TEST(Pruner, ASourceNoLongerThanWhatItLeavesPassesAsItIs) {
  torch::manual_seed(7);
  const auto config = configure("pruner", request());
  Encoder encoder(config);
  EXPECT_EQ(encoder->forward(torch::randn({2, 8, 16}), std::nullopt).memory.size(1), 8);
  EXPECT_EQ(encoder_lengths(config, 5), (std::vector<std::int64_t>{5, 5}));
  EXPECT_EQ(encoder_lengths(config, 32), (std::vector<std::int64_t>{8, 8}));
}

TEST(Pruner, CostsItsOwnLayersAndTheTaskEncoderOnWhatItLeaves) {
  const auto config = configure(Json{{"name", "pruner"}, {"pruner_width", 8}, {"pooling", "hard_topk"}}, request());
  const auto flops = [](const EncoderConfig& c, std::int64_t n) { return encoder_cost(c, 2, n, false, at::kFloat).flops; };
  auto trunk = *config.pruner;
  trunk.widths.clear();
  const double projection = 2.0 * 2 * 32 * 16 * 8, scoring = 2.0 * 2 * 32 * 8;
  EXPECT_EQ(flops(config, 32), flops(trunk, 32) + projection + scoring + flops(configure("vanilla", request()), 8));
  EXPECT_EQ(flops(config, 8), flops(configure("vanilla", request()), 8));
}

TEST(Pruner, WrongConfigurationsAreRefusedBeforeAnythingIsBuilt) {
  const auto message = [](EncoderConfig pruner) {
    auto config = configure("vanilla", request());
    config.pruner = std::make_shared<const EncoderConfig>(pruner);
    try {
      check_encoder(config, 32, "cpu", at::kFloat);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  auto pruner = configure("vanilla", request());
  EXPECT_NE(message(pruner).find("pruner: widths: allowed: rows after its last layer alone"), std::string::npos);
  pruner.widths = {{1, 40}};
  EXPECT_NE(message(pruner).find("40 rows cannot be left of 32"), std::string::npos);
  pruner.widths = {{1, 8}};
  EXPECT_EQ(message(pruner), "nothing was thrown");
  pruner.layer.heads = 3;
  EXPECT_NE(message(pruner).find("heads: 3"), std::string::npos);
}

TEST(Encoders, AWidthThatGrowsIsRefusedBeforeAnythingIsBuilt) {
  auto config = configure(Json{{"name", "pyramidion"}, {"widths", {{"0", 8}, {"1", 16}}}}, request());
  try {
    check_encoder(config, 32, "cpu", at::kFloat, Where("x.json", "/axes"));
    FAIL() << "accepted";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("x.json: /axes: widths: layer 1: 16 rows cannot be left of 8"),
              std::string::npos)
        << error.what();
  }
}

TEST(Encoders, HeadsThatDoNotDivideTheWidthAreRefused) {
  auto from = request();
  from.base.layer.heads = 3;
  EXPECT_THROW(check_encoder(configure("vanilla", from), 32, "cpu", at::kFloat), UsageError);
}

ModelConfig model_config(const Json& encoder, bool pre_norm) {
  auto from = request();
  from.base.layer.pre_norm = pre_norm;
  ModelConfig config;
  config.encoder = configure(encoder, from);
  config.decoder = {config.encoder.layer, 2};
  config.vocabulary = 40;
  return config;
}

TEST(Seq2Seq, StepByStepDecodingEqualsTeacherForcing) {
  for (const bool pre_norm : {false, true}) {
    torch::manual_seed(3);
    Seq2Seq model(model_config("pyramidion", pre_norm));
    model->eval();
    const torch::NoGradGuard no_gradient;
    const auto source = torch::randint(4, 40, {2, 32}, torch::kLong);
    const auto lengths = torch::tensor({32, 17}, torch::kLong);
    const auto target = torch::randint(4, 40, {2, 6}, torch::kLong);
    const auto whole = model->forward(source, lengths, target);
    auto state = model->start(model->encode(source, lengths), 6);
    for (std::int64_t t = 0; t < 6; ++t)
      EXPECT_TRUE(torch::allclose(model->forward_step(target.select(1, t), state), whole.select(1, t), 1e-4, 1e-5)) << t;
  }
}

TEST(Seq2Seq, ConfigurationSurvivesJson) {
  const auto config = model_config(Json{{"name", "transpooler"}, {"pooling", "hard_topk"}}, true);
  EXPECT_EQ(to_json(model_config_from_json(to_json(config), {})), to_json(config));
  const auto pruned = model_config(Json{{"name", "pruner"}, {"pruner_width", 8}}, true);
  const auto json = to_json(pruned);
  EXPECT_EQ(json["encoder"]["pruner"]["widths"], (Json{{"0", 8}}));
  EXPECT_EQ(to_json(model_config_from_json(json, {})), json);
}

TEST(Generation, GreedyDecodingFollowsTheLargestLogitAndStopsAtEos) {
  torch::manual_seed(4);
  Seq2Seq model(model_config("vanilla", false));
  model->eval();
  const auto source = torch::randint(4, 40, {3, 32}, torch::kLong);
  const auto tokens = generate_greedy(model, source, std::nullopt, {.max_length = 12, .stop_early = false});
  EXPECT_EQ(tokens.size(1), 12);
  const torch::NoGradGuard no_gradient;
  const auto forced = torch::cat({torch::ones({3, 1}, torch::kLong), tokens.narrow(1, 0, 11)}, 1);
  const auto best = model->forward(source, std::nullopt, forced).argmax(2);
  for (std::int64_t row = 0; row < 3; ++row)
    for (std::int64_t t = 0; t < 12; ++t) {
      EXPECT_EQ(tokens[row][t].item<std::int64_t>(), best[row][t].item<std::int64_t>());
      if (tokens[row][t].item<std::int64_t>() == 2) break;
    }
}

}  // namespace
}  // namespace transpool
