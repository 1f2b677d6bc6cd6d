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
