#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"

#include "tests/operators/variants.h"

#include <gmock/gmock.h>

#include <cmath>

namespace transpool {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

const Where place = Where("x.json") / "axes" / "pooling" / 2;

std::string refusal(const Json& value) {
  return message_of([&] { pooling_registry().resolve(value, place); });
}

TEST(RegistryTest, UnknownNamesAreAnsweredWithTheNearestAndTheKnown) {
  EXPECT_THAT(refusal("hard_topc"),
              AllOf(StartsWith("x.json: /axes/pooling/2: "), HasSubstr("unknown pooling operator \"hard_topc\""),
                    HasSubstr("did you mean \"hard_topk\"?"), HasSubstr("successive_halving")));
  EXPECT_THAT(refusal("zzz"), AllOf(HasSubstr("known: "), testing::Not(HasSubstr("did you mean"))));
  EXPECT_THAT(message_of([] { attention_registry().find("blokwise"); }), HasSubstr("did you mean \"blockwise\"?"));
}

TEST(RegistryTest, UnknownOptionsAreAnsweredWithTheNearestAtTheirPath) {
  EXPECT_THAT(refusal({{"name", "successive_halving"}, {"bas", 3}}),
              AllOf(StartsWith("x.json: /axes/pooling/2/bas: "),
                    HasSubstr("option of pooling operator \"successive_halving\""), HasSubstr("did you mean \"base\"?")));
}

TEST(RegistryTest, OptionsOfAnotherTypeOrOutOfRangeAreRefusedAtTheirPath) {
  EXPECT_THAT(refusal({{"name", "successive_halving"}, {"base", "big"}}),
              AllOf(StartsWith("x.json: /axes/pooling/2/base: "), HasSubstr("\"big\""), HasSubstr("number from 1.0001")));
  EXPECT_THAT(refusal({{"name", "successive_halving"}, {"base", 1}}),
              AllOf(StartsWith("x.json: /axes/pooling/2/base: "), HasSubstr("1 is out of range"), HasSubstr("1.0001")));
  EXPECT_THAT(refusal({{"name", "successive_halving"}, {"base", 1e7}}), HasSubstr("out of range"));
  EXPECT_THAT(refusal({{"name", "successive_halving"}, {"mirror", 1}}),
              AllOf(StartsWith("x.json: /axes/pooling/2/mirror: "), HasSubstr("true or false")));
  EXPECT_THAT(refusal({{"name", "successive_halving"}, {"base", nullptr}}), HasSubstr("null is not allowed"));
  EXPECT_THAT(refusal({{"name", "hard_topk"}, {"gradient", "gate"}}),
              AllOf(StartsWith("x.json: /axes/pooling/2/gradient: "), HasSubstr("did you mean \"gated\"?")));
  const auto chunk = [](const Json& value) {
    return message_of([&] { attention_registry().resolve({{"name", "blockwise"}, {"chunk", value}}, place); });
  };
  EXPECT_THAT(chunk(0), AllOf(StartsWith("x.json: /axes/pooling/2/chunk: "), HasSubstr("integer, 1 or more")));
  EXPECT_THAT(chunk(2.5), HasSubstr("2.5 is not allowed"));
  EXPECT_THAT(chunk(-3), HasSubstr("-3 is out of range"));
  EXPECT_THAT(chunk(Json::parse("18446744073709551615")), HasSubstr("18446744073709551615 is not allowed"));
  EXPECT_EQ(chunk(16.0), "nothing was thrown");
}

TEST(RegistryTest, ValuesThatAreNoVariantAreRefused) {
  for (const Json& value : {Json(3), Json::array({"hard_topk"}), Json::object(), Json{{"name", 3}}, Json(nullptr)})
    EXPECT_THAT(refusal(value), AllOf(StartsWith("x.json: /axes/pooling/2: "), HasSubstr("name of a pooling operator")));
}

TEST(RegistryTest, DefaultsAreFilledInInTheOrderOfTheSpecs) {
  EXPECT_EQ(pooling_registry().resolve("hard_topk", place).dump(),
            R"({"name":"hard_topk","gradient":"gated","keep_order":true})");
  EXPECT_EQ(pooling_registry().resolve({{"mirror", false}, {"base", 5}, {"name", "successive_halving"}}, place).dump(),
            R"({"name":"successive_halving","base":5.0,"mirror":false,"keep_order":true,"skip":"off","epsilon":0.001})");
  EXPECT_EQ(attention_registry().resolve({{"name", "blockwise"}, {"chunk", 16.0}}, place).dump(),
            R"({"name":"blockwise","chunk":16})");
}

TEST(RegistryTest, ResolvingAResolvedValueChangesNothing) {
  for (const auto* registry :
       {static_cast<const RegistryBase*>(&pooling_registry()), static_cast<const RegistryBase*>(&attention_registry())})
    for (const auto& name : registry->names()) {
      Json value = {{"name", name}};
      if (registry == &pooling_registry() && !runs_by_name(pooling_registry().find(name))) {
        value["file"] = "a file";
        value["against"] = "hard_topk";
      }
      const auto full = registry->resolve(value, place);
      EXPECT_EQ(registry->resolve(full, place), full);
    }
}

TEST(RegistryTest, ANameIsRegisteredOnce) {
  const auto names = pooling_registry().names();
  EXPECT_EQ(message_of<std::logic_error>([] { pooling_registry().add(pooling_registry().find("hard_topk")); }),
            "pooling operator \"hard_topk\" is registered twice");
  EXPECT_EQ(pooling_registry().names(), names);
}

TEST(RegistryTest, AVariantOfAFileWithAnotherLayoutIsRefused) {
  auto pooling = pooling_registry().find("hard_topk");
  auto attention = attention_registry().find("full");
  pooling.name = attention.name = "of another version";
  EXPECT_THAT(message_of<std::logic_error>([&] { RegisterPooling(pooling, pooling_layout + 1); }),
              AllOf(StartsWith("pooling operator built against another version of transpool"),
                    HasSubstr("build it against this version")));
  EXPECT_THAT(message_of<std::logic_error>([&] { RegisterAttention(attention, attention_layout + 1); }),
              StartsWith("attention operator built against another version of transpool"));
  EXPECT_EQ(pooling_registry().all().count("of another version"), 0U);
  EXPECT_EQ(attention_registry().all().count("of another version"), 0U);
}

TEST(RegistryTest, TheCatalogueHoldsEveryRegistryByItsKind) {
  EXPECT_EQ(catalogue().at("pooling"), &pooling_registry());
  EXPECT_EQ(catalogue().at("attention"), &attention_registry());
  for (const auto& [kind, registry] : catalogue()) EXPECT_EQ(registry->kind(), kind);
}

template <class Variant>
void expect_complete(const Registry<Variant>& registry) {
  EXPECT_FALSE(registry.all().empty());
  for (const auto& [name, variant] : registry.all()) {
    SCOPED_TRACE(name);
    EXPECT_FALSE(variant.description.empty());
    EXPECT_EQ(variant.description.find('\n'), std::string::npos);
    // A paper and what is taken from it, or a word on why there is none.
    EXPECT_THAT(variant.source, testing::AnyOf(testing::ContainsRegex("arXiv [0-9]{4}\\.[0-9]{5}[,:] .{6,}"),
                                               testing::StartsWith("control, of no paper: "), testing::Eq("the file")));
    EXPECT_TRUE(variant.make);
    EXPECT_TRUE(variant.reference);
    EXPECT_TRUE(variant.cost);
    for (const auto& spec : variant.options) EXPECT_FALSE(spec.meaning.empty()) << spec.name;
    const auto told = registry.describe(name);
    EXPECT_EQ(told["name"], name);
    EXPECT_EQ(told["options"].size(), variant.options.size());
    if (!runs_by_name(variant)) continue;
    const auto options = registry.select(name).options;
    EXPECT_TRUE(variant.make(options));
    EXPECT_TRUE(variant.reference(options));
  }
}

TEST(RegistryTest, EveryVariantIsComplete) {
  expect_complete(pooling_registry());
  expect_complete(attention_registry());
}

void expect_sound(const Cost& cost) {
  for (const double value : {cost.flops, cost.backward_flops, cost.bytes_read, cost.bytes_written, cost.activation_bytes}) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_GE(value, 0);
  }
}

void expect_no_less(const Cost& more, const Cost& less) {
  EXPECT_GE(more.flops, less.flops);
  EXPECT_GE(more.backward_flops, less.backward_flops);
  EXPECT_GE(more.bytes_read, less.bytes_read);
  EXPECT_GE(more.bytes_written, less.bytes_written);
}

void expect_more(const Cost& more, const Cost& less) {
  expect_no_less(more, less);
  EXPECT_GT(more.flops + more.bytes_read + more.bytes_written, less.flops + less.bytes_read + less.bytes_written);
}

TEST(RegistryTest, CostsOfPoolingGrowWithTheShape) {
  for (const auto& [name, variant] : pooling_registry().all()) {
    if (!runs_by_name(variant)) continue;
    SCOPED_TRACE(name);
    const auto options = pooling_registry().select(name).options;
    const PoolingShape shape{.batch = 2, .length = 64, .width = 8, .pooled_length = 16};
    const auto cost = variant.cost(shape, options);
    expect_sound(cost);
    for (const auto member : {&PoolingShape::batch, &PoolingShape::width}) {
      auto larger = shape;
      larger.*member *= 2;
      expect_sound(variant.cost(larger, options));
      expect_more(variant.cost(larger, options), cost);
    }
    // An operator that takes rows by their place need not look at the rest.
    auto longer = shape;
    longer.length *= 2;
    expect_sound(variant.cost(longer, options));
    expect_no_less(variant.cost(longer, options), cost);
    auto wider = shape;
    wider.dtype = at::kDouble;
    EXPECT_GT(variant.cost(wider, options).bytes_read, cost.bytes_read);
    auto more_kept = shape;
    more_kept.pooled_length = 32;
    EXPECT_GT(variant.cost(more_kept, options).bytes_written, 0);
  }
}

TEST(RegistryTest, CostsOfAttentionGrowWithTheShapeAndHalveWhereCausal) {
  for (const auto& [name, variant] : attention_registry().all()) {
    if (!runs_by_name(variant)) continue;
    SCOPED_TRACE(name);
    const auto options = attention_registry().select(name).options;
    const AttentionShape shape{.batch = 2, .heads = 2, .queries = 64, .keys = 64, .head_width = 8};
    const auto cost = variant.cost(shape, options);
    expect_sound(cost);
    EXPECT_GT(cost.flops, 0);
    for (const auto member : {&AttentionShape::batch, &AttentionShape::heads, &AttentionShape::head_width}) {
      auto larger = shape;
      larger.*member *= 2;
      expect_more(variant.cost(larger, options), cost);
      EXPECT_GE(variant.cost(larger, options).flops, 2 * cost.flops);
    }
    auto longer = shape;
    longer.queries = longer.keys = 128;
    expect_more(variant.cost(longer, options), cost);
    if (!variant.capabilities.causal) continue;
    auto causal = shape;
    causal.causal = true;
    EXPECT_LT(variant.cost(causal, options).flops, cost.flops);
    EXPECT_GE(variant.cost(causal, options).flops, cost.flops / 2);
  }
}

TEST(RegistryTest, CostsAddAndScale) {
  Cost cost{.flops = 1, .backward_flops = 2, .bytes_read = 3, .bytes_written = 4, .activation_bytes = 5};
  cost.forward_differences = {{"a", 6}};
  const auto twice = cost.scaled(2);
  cost += cost;
  for (const auto& sum : {cost, twice}) {
    EXPECT_EQ(sum.flops, 2);
    EXPECT_EQ(sum.backward_flops, 4);
    EXPECT_EQ(sum.bytes_read, 6);
    EXPECT_EQ(sum.bytes_written, 8);
    EXPECT_EQ(sum.activation_bytes, 10);
    EXPECT_EQ(sum.forward_differences.at("a"), 12);
  }
}

}  // namespace
}  // namespace transpool
