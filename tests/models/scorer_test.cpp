#include "models/scorers/scorer.h"
#include "models/encoder.h"
#include "models/encoders/encoder_variant.h"

#include <gmock/gmock.h>

namespace transpool {
namespace {

std::shared_ptr<Scorer> make(const Json& value, std::int64_t width = 8) {
  const auto selection = scorer_registry().select(value);
  return selection.variant->make(width, selection.options);
}

/// Every scorer with its defaults, those that need more with that.
std::map<std::string, std::shared_ptr<Scorer>> scorers() {
  std::map<std::string, std::shared_ptr<Scorer>> all;
  for (const auto& [name, variant] : scorer_registry().all()) {
    Json value = {{"name", name}};
    for (const auto& option : variant.options) {
      if (option.name == "salient") value["salient"] = {4, 5};
      if (option.name == "seed") value["seed"] = 1;
    }
    all[name] = make(value);
  }
  return all;
}

TEST(Scorers, GiveFiniteFloatScoresOfEveryRowWhateverTheDtype) {
  torch::manual_seed(1);
  const auto tokens = torch::randint(4, 9, {2, 7}, torch::kLong);
  for (const auto dtype : {torch::kFloat, torch::kDouble})
    for (const auto& [name, scorer] : scorers()) {
      scorer->to(dtype);
      const auto scores = scorer->forward({torch::randn({2, 7, 8}, dtype), std::nullopt, tokens});
      EXPECT_EQ(scores.sizes(), (std::vector<std::int64_t>{2, 7})) << name;
      EXPECT_EQ(scores.scalar_type(), torch::kFloat) << name;
      EXPECT_TRUE(scores.isfinite().all().item<bool>()) << name;
    }
}

TEST(Scorers, PaddedRowsDoNotChangeTheScoresOfOthers) {
  torch::manual_seed(2);
  const auto x = torch::randn({2, 7, 8});
  auto changed = x.clone();
  changed.narrow(1, 4, 3).normal_(0, 100);
  const auto lengths = torch::tensor({4, 4}, torch::kLong);
  const auto tokens = torch::randint(4, 9, {2, 7}, torch::kLong);
  for (const auto& [name, scorer] : scorers())
    EXPECT_TRUE(torch::equal(scorer->forward({x, lengths, tokens}).narrow(1, 0, 4),
                             scorer->forward({changed, lengths, tokens}).narrow(1, 0, 4)))
        << name;
}

TEST(Scorers, EveryParameterGetsAGradient) {
  torch::manual_seed(3);
  const auto tokens = torch::randint(4, 9, {2, 7}, torch::kLong);
  for (const auto& [name, scorer] : scorers()) {
    if (scorer->parameters().empty()) continue;
    scorer->forward({torch::randn({2, 7, 8}), torch::tensor({7, 0}, torch::kLong), tokens}).square().sum().backward();
    for (const auto& parameter : scorer->named_parameters()) {
      ASSERT_TRUE(parameter.value().grad().defined()) << name << " " << parameter.key();
      EXPECT_TRUE(parameter.value().grad().isfinite().all().item<bool>()) << name << " " << parameter.key();
    }
  }
}

TEST(Scorers, AttentionColumnSumsTheColumnsOfItsAttentionOverValidQueries) {
  torch::manual_seed(4);
  const auto scorer = make({{"name", "attention_column"}, {"heads", 2}});
  const auto x = torch::randn({2, 5, 8});
  const auto scores = scorer->forward({x, torch::tensor({5, 3}, torch::kLong)});
  const auto weight = scorer->named_parameters()["input.weight"], bias = scorer->named_parameters()["input.bias"];
  const auto projected = torch::matmul(x, weight.t()) + bias;
  for (std::int64_t b = 0; b < 2; ++b) {
    const std::int64_t valid = b == 0 ? 5 : 3;
    auto expected = torch::zeros({valid});
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t i = 0; i < valid; ++i) {
        const auto query = projected[b][i].narrow(0, 4 * h, 4);
        const auto keys = projected[b].narrow(0, 0, valid).narrow(1, 8 + 4 * h, 4);
        expected = expected + (keys * query).sum(1).div(2.0).softmax(0) / 2;
      }
    EXPECT_TRUE(torch::allclose(scores[b].narrow(0, 0, valid), expected, 1e-5, 1e-6)) << b;
    EXPECT_NEAR(scores[b].narrow(0, 0, valid).sum().item<double>(), static_cast<double>(valid), 1e-5);
  }
  EXPECT_THROW(make({{"name", "attention_column"}, {"heads", 3}}), UsageError);
}

TEST(Scorers, NormAndPositionAreWhatTheySay) {
  const auto x = torch::tensor({3.0F, 4.0F, 0.0F, 0.0F, 1.0F, 1.0F, 1.0F, 1.0F}).view({1, 2, 4});
  EXPECT_TRUE(torch::allclose(make("norm", 4)->forward({x}), torch::tensor({2.5F, 1.0F}).view({1, 2})));
  const auto place = make("position")->forward({torch::randn({2, 4, 8})});
  EXPECT_TRUE(torch::allclose(place, torch::tensor({1.0F, 0.75F, 0.5F, 0.25F}).expand({2, 4})));
}

TEST(Scorers, RandomScoresRepeatForASeedAndAreDrawnAnewWithout) {
  const auto x = torch::randn({2, 50, 8});
  const auto seeded = make({{"name", "random"}, {"seed", 3}}), free = make("random");
  EXPECT_TRUE(torch::equal(seeded->forward({x}), seeded->forward({x})));
  EXPECT_FALSE(torch::equal(free->forward({x}), free->forward({x})));
  EXPECT_FALSE(torch::equal(seeded->forward({x})[0], seeded->forward({x})[1]));
}

TEST(Oracle, MarksTheSalientTokensAndNamesWhatIsMissing) {
  const auto oracle = make({{"name", "oracle"}, {"salient", {5, 9}}});
  const auto x = torch::randn({1, 4, 8});
  EXPECT_TRUE(torch::equal(oracle->forward({x, std::nullopt, torch::tensor({9, 4, 0, 5}, torch::kLong).view({1, 4})}),
                           torch::tensor({1.0F, 0.0F, 0.0F, 1.0F}).view({1, 4})));
  const auto message = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  EXPECT_THAT(message([&] { oracle->forward({x}); }), testing::HasSubstr("source tokens are not known"));
  EXPECT_THAT(message([] { make("oracle"); }), testing::HasSubstr("salient: null is not allowed here"));
  EXPECT_THAT(message([] { make({{"name", "oracle"}, {"salient", {"a"}}}); }), testing::HasSubstr("\"a\""));
}

TEST(Oracle, FollowsTokensThroughEveryPoolingLayerSoThatTheSalientOnesStay) {
  torch::manual_seed(5);
  EncoderRequest request;
  request.base.layer = {.width = 16, .heads = 2, .feed_forward = 32, .dropout = 0.0};
  request.source_length = 16;
  request.pooled_length = 3;
  request.chunk = 4;
  for (const auto* pooling : {"hard_topk", "successive_halving"}) {
    const auto selection = encoder_registry().select(
        Json{{"name", "pyramidion"}, {"pooling", pooling}, {"scorer", {{"name", "oracle"}, {"salient", {5, 6, 7}}}}});
    Encoder encoder(selection.variant->configure(request, selection.options));
    auto tokens = torch::full({2, 16}, 9, torch::kLong);
    for (std::int64_t i = 0; i < 3; ++i) {
      tokens[0][15 - 5 * i] = 5 + i;
      tokens[1][i] = 5 + i;
    }
    const auto encoded = encoder->forward(torch::randn({2, 16, 16}), torch::tensor({16, 2}, torch::kLong), tokens);
    const auto left = std::get<0>(encoded.tokens->sort());
    EXPECT_TRUE(torch::equal(left[0], torch::tensor({5, 6, 7}, torch::kLong))) << pooling;
    EXPECT_TRUE(torch::equal(left[1], torch::tensor({-1, 5, 6}, torch::kLong))) << pooling;
  }
}

}  // namespace
}  // namespace transpool
