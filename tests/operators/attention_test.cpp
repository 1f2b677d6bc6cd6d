#include "operators/attention/attention.h"

#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <gmock/gmock.h>

#include <set>
#include <sstream>

namespace transpool {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using Lengths = std::optional<at::Tensor>;

at::Tensor lengths_of(const std::vector<std::int64_t>& lengths) { return at::tensor(lengths, at::kLong); }

struct Instance {
  const AttentionVariant* variant;
  std::string label;
  std::shared_ptr<const AttentionOperator> op, reference;
};

/// Values for options that tests vary or need small; the seed makes random variants repeat themselves.
const std::map<std::string, std::vector<Json>> varied_options = {
    {"chunk", {4, 5, 512}},  {"window", {1, 3, 512}}, {"global_tokens", {0, 2}},       {"rounds", {1, 3}},
    {"bucket", {2, 5, 512}}, {"seed", {1}},           {"projected_length", {1, 3, 64}}};

std::vector<Instance> instances() {
  std::vector<Instance> all;
  for (const auto& [name, variant] : attention_registry().all()) {
    if (!runs_by_name(variant)) continue;
    for (const auto& value : option_combinations(variant, varied_options)) {
      const auto selection = attention_registry().select(value);
      all.push_back({&variant, value.dump(), variant.make(selection.options), variant.reference(selection.options)});
    }
  }
  return all;
}

std::shared_ptr<const AttentionOperator> make(const Json& value) {
  const auto selection = attention_registry().select(value);
  return selection.variant->make(selection.options);
}

std::vector<AttentionMask> masks(const AttentionVariant& variant, std::int64_t n) {
  std::vector<AttentionMask> all;
  for (const bool causal : {false, true}) {
    if (causal && !variant.capabilities.causal) continue;
    for (const auto& lengths : {Lengths(), Lengths(lengths_of({n, n / 2, 0})), Lengths(lengths_of({1, n - 1, n / 3}))})
      all.push_back({.key_lengths = lengths, .causal = causal});
  }
  return all;
}

std::string text_of(const AttentionMask& mask) {
  std::ostringstream text;
  text << (mask.causal ? "causal " : "") << "lengths ";
  if (mask.key_lengths) text << *mask.key_lengths;
  return text.str();
}

at::Tensor random_heads(std::int64_t n, at::ScalarType dtype = at::kDouble, std::int64_t width = 4) {
  return at::randn({3, 2, n, width}, dtype);
}

class Attention : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(17060376); }
};

TEST_F(Attention, EveryVariantEqualsItsReference) {
  for (const auto& instance : instances())
    for (const std::int64_t n : {1, 4, 8, 13, 20})
      for (const auto& mask : masks(*instance.variant, n))
        for (const auto dtype : {at::kDouble, at::kFloat}) {
          SCOPED_TRACE(instance.label + " n " + std::to_string(n) + " " + text_of(mask));
          const auto q = random_heads(n, dtype), k = random_heads(n, dtype), v = random_heads(n, dtype);
          const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-5;
          const auto out = instance.op->forward(q, k, v, mask);
          EXPECT_TRUE(finite(out));
          EXPECT_TRUE(close(out, instance.reference->forward(q, k, v, mask), tolerance, tolerance));
        }
}

TEST_F(Attention, FullAndLongChunksEqualTheFormulaWrittenOut) {
  const auto formula = make("full_math");
  for (const auto& op :
       {make("full"), make({{"name", "blockwise"}, {"chunk", 64}}), make({{"name", "blockwise"}, {"chunk", 13}})})
    for (const auto& mask : masks(attention_registry().find("full"), 13)) {
      SCOPED_TRACE(text_of(mask));
      const auto q = random_heads(13), k = random_heads(13), v = random_heads(13);
      EXPECT_TRUE(close(op->forward(q, k, v, mask), formula->forward(q, k, v, mask), 1e-12, 1e-12));
    }
}

TEST_F(Attention, BlockwiseIsTheFormulaOnEachChunkAndOnTheShorterLastOne) {
  const auto formula = make("full_math");
  const auto blockwise = make({{"name", "blockwise"}, {"chunk", 5}});
  for (const std::int64_t n : {5, 10, 13, 16, 3})
    for (const auto& mask : masks(attention_registry().find("blockwise"), n)) {
      SCOPED_TRACE("n " + std::to_string(n) + " " + text_of(mask));
      const auto q = random_heads(n), k = random_heads(n), v = random_heads(n);
      std::vector<at::Tensor> chunks;
      for (std::int64_t start = 0; start < n; start += 5) {
        const auto rows = std::min<std::int64_t>(5, n - start);
        auto part = mask;
        if (part.key_lengths) part.key_lengths = (*part.key_lengths - start).clamp(0, rows);
        const auto cut = [&](const at::Tensor& t) { return t.narrow(2, start, rows); };
        chunks.push_back(formula->forward(cut(q), cut(k), cut(v), part));
      }
      EXPECT_TRUE(close(blockwise->forward(q, k, v, mask), at::cat(chunks, 2), 1e-12, 1e-12));
    }
}

TEST_F(Attention, SmallExampleByHand) {
  // One head of width 1: the second query weighs its keys e^2 : e^-2.
  const auto q = at::tensor({0.0, 2.0}, at::kDouble).view({1, 1, 2, 1});
  const auto k = at::tensor({1.0, -1.0}, at::kDouble).view({1, 1, 2, 1});
  const auto v = at::tensor({10.0, 20.0}, at::kDouble).view({1, 1, 2, 1});
  const double w = 1 / (1 + std::exp(-4.0));
  // Only those that give each pair its softmax weight; the others have examples of their own.
  const std::set<std::string> exact = {"full", "full_math", "blockwise", "sliding_window"};
  for (const auto& instance : instances()) {
    if (!exact.contains(instance.variant->name)) continue;
    SCOPED_TRACE(instance.label);
    const auto out = instance.op->forward(q, k, v, {}).flatten();
    EXPECT_NEAR(out[0].item<double>(), 15, 1e-12);
    EXPECT_NEAR(out[1].item<double>(), 10 * w + 20 * (1 - w), 1e-12);
    if (!instance.variant->capabilities.causal) continue;
    EXPECT_NEAR(instance.op->forward(q, k, v, {.causal = true}).flatten()[0].item<double>(), 10, 1e-12);
  }
}

TEST_F(Attention, GradientsMatchFiniteDifferences) {
  for (const auto& instance : instances())
    for (const auto& mask : masks(*instance.variant, 6)) {
      if (mask.key_lengths && mask.key_lengths->min().item<std::int64_t>() > 0) continue;
      SCOPED_TRACE(instance.label + " " + text_of(mask));
      const Differentiable function = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
        return {instance.op->forward(in[0], in[1], in[2], mask)};
      };
      EXPECT_TRUE(gradients_match_differences(
          function, {random_heads(6, at::kDouble, 2), random_heads(6, at::kDouble, 2), random_heads(6, at::kDouble, 2)}));
    }
}

TEST_F(Attention, KeysPastTheLengthChangeNothingAndGetNoGradient) {
  for (const auto& instance : instances())
    for (const auto& mask : masks(*instance.variant, 13)) {
      if (!mask.key_lengths) continue;
      SCOPED_TRACE(instance.label + " " + text_of(mask));
      const auto padded = (at::arange(13).view({1, 1, 13, 1}) >= mask.key_lengths->view({-1, 1, 1, 1}));
      const auto q = random_heads(13), k = random_heads(13), v = random_heads(13);
      const Differentiable function = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
        return {instance.op->forward(in[0], in[1], in[2], mask)};
      };
      EXPECT_TRUE(close(function({q, k.masked_fill(padded, 1e4), v.masked_fill(padded, -1e4)})[0], function({q, k, v})[0],
                        1e-12, 1e-12));
      const auto gradients = gradients_of(function, {q, k, v}, cotangents_for(function, {q, k, v}));
      for (const auto& gradient : gradients) EXPECT_TRUE(finite(gradient));
      EXPECT_TRUE((gradients[1].masked_select(padded) == 0).all().item<bool>());
      EXPECT_TRUE((gradients[2].masked_select(padded) == 0).all().item<bool>());
    }
}

TEST_F(Attention, RowsWithoutAnyKeyAreZero) {
  for (const auto& instance : instances()) {
    SCOPED_TRACE(instance.label);
    const auto lengths = lengths_of({0, 8, 0});
    const auto out = instance.op->forward(random_heads(8), random_heads(8), random_heads(8), {.key_lengths = lengths});
    EXPECT_TRUE((out[0] == 0).all().item<bool>());
    EXPECT_TRUE((out[1] != 0).all().item<bool>());
    EXPECT_TRUE((out[2] == 0).all().item<bool>());
  }
}

TEST_F(Attention, ViewsOfAFusedProjectionGiveTheSameAsCopies) {
  for (const auto& instance : instances())
    for (const std::int64_t n : {8, 13})
      for (const auto& mask : masks(*instance.variant, n)) {
        SCOPED_TRACE(instance.label + " n " + std::to_string(n) + " " + text_of(mask));
        const auto projected = at::randn({3, n, 3 * 2 * 4}, at::kDouble);  // (B, n, 3 h e)
        const Differentiable by_views = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
          const auto parts = in[0].view({3, n, 3, 2, 4}).permute({2, 0, 3, 1, 4});
          return {instance.op->forward(parts[0], parts[1], parts[2], mask)};
        };
        const Differentiable by_copies = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
          const auto parts = in[0].view({3, n, 3, 2, 4}).permute({2, 0, 3, 1, 4}).contiguous();
          return {instance.op->forward(parts[0], parts[1], parts[2], mask)};
        };
        EXPECT_TRUE(close(by_views({projected})[0], by_copies({projected})[0], 1e-12, 1e-12));
        const std::vector<at::Tensor> cotangents = {at::randn({3, 2, n, 4}, at::kDouble)};
        EXPECT_TRUE(close(gradients_of(by_views, {projected}, cotangents)[0],
                          gradients_of(by_copies, {projected}, cotangents)[0], 1e-12, 1e-12));
      }
}

TEST_F(Attention, KeysOfAnotherLengthWhereTheVariantTakesThem) {
  const auto q = random_heads(4), k = random_heads(9), v = random_heads(9);
  for (const auto& instance : instances()) {
    SCOPED_TRACE(instance.label);
    for (const auto& lengths : {Lengths(), Lengths(lengths_of({9, 0, 5}))}) {
      const AttentionMask mask{.key_lengths = lengths};
      if (instance.variant->capabilities.cross) {
        EXPECT_TRUE(close(instance.op->forward(q, k, v, mask), instance.reference->forward(q, k, v, mask), 1e-12, 1e-12));
      } else {
        EXPECT_THAT(message_of<Unsupported>([&] { instance.op->forward(q, k, v, mask); }),
                    AllOf(HasSubstr(instance.variant->name), HasSubstr("keys of another length")));
      }
    }
  }
}

TEST_F(Attention, OneBatchRowIsTheSameAloneAndAmongOthers) {
  for (const auto& instance : instances())
    for (const auto& mask : masks(*instance.variant, 13)) {
      SCOPED_TRACE(instance.label + " " + text_of(mask));
      const auto q = random_heads(13), k = random_heads(13), v = random_heads(13);
      auto alone = mask;
      if (alone.key_lengths) alone.key_lengths = alone.key_lengths->narrow(0, 1, 1);
      const auto one = [](const at::Tensor& t) { return t.narrow(0, 1, 1); };
      EXPECT_TRUE(close(instance.op->forward(one(q), one(k), one(v), alone), one(instance.op->forward(q, k, v, mask)), 1e-12,
                        1e-12));
    }
}

TEST_F(Attention, ASeedRepeatsTheDrawAndNoneDrawsAnew) {
  const auto q = random_heads(20), k = random_heads(20), v = random_heads(20);
  for (const auto& instance : instances())
    EXPECT_TRUE(at::equal(instance.op->forward(q, k, v, {}), instance.op->forward(q, k, v, {}))) << instance.label;
  for (const Json& value :
       {Json{{"name", "lsh"}, {"bucket", 3}, {"rounds", 1}},
        Json{{"name", "linformer"}, {"projection", "random"}, {"projected_length", 3}, {"seed", nullptr}}}) {
    const auto op = make(value);
    EXPECT_FALSE(at::equal(op->forward(q, k, v, {}), op->forward(q, k, v, {}))) << value;
  }
}

TEST_F(Attention, ACausalMaskIsRefusedByNameWhereTheVariantHasNone) {
  const auto q = random_heads(5);
  for (const auto& instance : instances()) {
    if (instance.variant->capabilities.causal) continue;
    EXPECT_THAT(message_of<Unsupported>([&] { instance.op->forward(q, q, q, {.causal = true}); }),
                AllOf(HasSubstr(instance.variant->name), HasSubstr("causal")));
  }
}

TEST_F(Attention, HalfTypesStayCloseToFloat32) {
  for (const auto& instance : instances())
    for (const auto& mask : masks(*instance.variant, 13)) {
      SCOPED_TRACE(instance.label + " " + text_of(mask));
      const auto q = random_heads(13, at::kBFloat16, 8), k = random_heads(13, at::kBFloat16, 8),
                 v = random_heads(13, at::kBFloat16, 8);
      const auto half = instance.op->forward(q, k, v, mask);
      EXPECT_EQ(half.scalar_type(), at::kBFloat16);
      EXPECT_TRUE(close(half.to(at::kFloat),
                        instance.op->forward(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), mask), 2e-2, 3e-2));
    }
}

TEST_F(Attention, RefusedArgumentsAreNamedWithTheirShapeAndWhatIsAllowed) {
  const auto q = random_heads(5);
  for (const auto& instance : instances()) {
    SCOPED_TRACE(instance.label);
    const auto refusal = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const AttentionMask& mask = {}) {
      return message_of([&] { instance.op->forward(a, b, c, mask); });
    };
    EXPECT_THAT(refusal(q[0], q, q), AllOf(HasSubstr("q: shape (2, 5, 4)"), HasSubstr("(B, h, n, e)")));
    EXPECT_THAT(refusal(q, random_heads(5, at::kDouble, 3), q),
                AllOf(HasSubstr("k: shape (3, 2, 5, 3)"), HasSubstr("(3, 2, m, 4)")));
    for (const auto& none : {q.narrow(0, 0, 0), q.narrow(1, 0, 0), q.narrow(2, 0, 0)})
      EXPECT_THAT(refusal(none, none, none), AllOf(HasSubstr("q: shape ("), HasSubstr("each 1 or more")));
    EXPECT_THAT(refusal(q, q.narrow(2, 0, 0), q.narrow(2, 0, 0)), HasSubstr("k: shape (3, 2, 0, 4)"));
    EXPECT_THAT(refusal(q, q, random_heads(6)), AllOf(HasSubstr("v: shape (3, 2, 6, 4)"), HasSubstr("(3, 2, 5, e)")));
    EXPECT_THAT(refusal(q, random_heads(6), random_heads(6), {.causal = true}),
                AllOf(HasSubstr("k: shape (3, 2, 6, 4)"), HasSubstr("5 keys")));
    EXPECT_THAT(refusal(q, q, q, {.key_lengths = lengths_of({1, 2})}), AllOf(HasSubstr("lengths: [2]"), HasSubstr("(3,)")));
    EXPECT_THAT(refusal(q, q, q, {.key_lengths = lengths_of({1, 2, 3}).to(at::kInt)}),
                AllOf(HasSubstr("lengths: "), HasSubstr("Int"), HasSubstr("int64")));
  }
}

TEST_F(Attention, SupportIsRefusedByDeviceDtypeLengthCausalAndCross) {
  AttentionVariant variant;
  variant.name = "narrow";
  variant.capabilities = {.devices = {"cpu"}, .dtypes = {"float32"}, .max_length = 64};
  const auto refusal = [&](const AttentionShape& shape, const std::string& device) {
    return message_of<Unsupported>([&] { check_attention_support(variant, shape, device); });
  };
  const AttentionShape shape{.queries = 8, .keys = 8};
  EXPECT_EQ(refusal(shape, "cpu"), "nothing was thrown");
  EXPECT_THAT(refusal(shape, "cuda"), AllOf(HasSubstr("\"narrow\""), HasSubstr("device cuda")));
  EXPECT_THAT(refusal({.queries = 8, .keys = 8, .dtype = at::kHalf}, "cpu"), HasSubstr("dtype float16"));
  EXPECT_THAT(refusal({.queries = 65, .keys = 65}, "cpu"), HasSubstr("length 65 > 64"));
  EXPECT_THAT(refusal({.queries = 8, .keys = 8, .causal = true}, "cpu"), HasSubstr("causal"));
  EXPECT_THAT(refusal({.queries = 8, .keys = 9}, "cpu"), HasSubstr("keys of another length"));
}

}  // namespace
}  // namespace transpool
