#include "operators/torch_ops.h"

#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"
#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <gmock/gmock.h>

namespace transpool {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using Lengths = std::optional<at::Tensor>;
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Results pool(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Lengths& lengths, std::string_view name,
             std::string_view options = "") {
  return find_operator<Results(const at::Tensor&, const at::Tensor&, std::int64_t, const Lengths&, std::string_view,
                               std::string_view)>("transpool::pool")
      .call(x, scores, k, lengths, name, options);
}

Results pool_seeded(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, std::string_view name,
                    std::int64_t seed) {
  return find_operator<Results(const at::Tensor&, const at::Tensor&, std::int64_t, const Lengths&, std::string_view,
                               std::string_view, const Lengths&)>("transpool::pool_seeded")
      .call(x, scores, k, std::nullopt, name, "", at::scalar_tensor(seed, at::kLong));
}

std::tuple<at::Tensor, at::Tensor> pool_backward(const at::Tensor& values_gradient, const at::Tensor& scores_gradient,
                                                 const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                                                 const Lengths& lengths, std::string_view name, std::string_view options,
                                                 const Lengths& seed = std::nullopt) {
  return find_operator<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                          const at::Tensor&, std::int64_t, const Lengths&, std::string_view,
                                                          std::string_view, const Lengths&)>("transpool::pool_backward")
      .call(values_gradient, scores_gradient, x, scores, k, lengths, name, options, seed);
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Lengths& lengths,
                  std::string_view name, std::string_view options = "") {
  return find_operator<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const Lengths&, std::string_view,
                                  std::string_view)>("transpool::attend")
      .call(q, k, v, lengths, name, options);
}

/// The first rows times noise of its own; without `seed` other noise each time.
class Noisy : public PoolingOperator {
 public:
  explicit Noisy(const Options& options) {
    if (options.has("seed")) seed_ = options.integer("seed");
  }
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Lengths&) const override {
    std::optional<at::Generator> generator;
    if (seed_) {
      generator = at::detail::getDefaultCPUGenerator().clone();
      generator->set_current_seed(static_cast<std::uint64_t>(*seed_));
    }
    const auto noise = at::rand({x.size(0), k, 1}, generator, x.options());
    const auto kept = scores.narrow(1, 0, k);
    return {x.narrow(1, 0, k) * noise * kept.unsqueeze(2), kept, at::arange(k).expand({x.size(0), k})};
  }

 private:
  std::optional<std::int64_t> seed_;
};

const RegisterPooling noisy({
    {.name = "noisy_for_test",
     .description = "first rows times noise",
     .source = "none",
     .options =
         {{.name = "seed", .type = OptionType::integer, .fallback = nullptr, .meaning = "of the noise", .optional = true}},
     .capabilities = {.dtypes = {"float64"}, .stochastic = true}},
    [](const Options& options) { return std::make_shared<Noisy>(options); },
    [](const Options& options) { return std::make_shared<Noisy>(options); },
    [](const PoolingShape&, const Options&) { return Cost{}; },
});

const RegisterPooling fixed({
    {.name = "forward_only_for_test",
     .description = "first rows, no gradient",
     .source = "none",
     .capabilities = {.differentiable = false}},
    [](const Options&) { return std::make_shared<Noisy>(Options()); },
    [](const Options&) { return std::make_shared<Noisy>(Options()); },
    [](const PoolingShape&, const Options&) { return Cost{}; },
});

class TorchOps : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(4); }
  at::Tensor x = at::randn({3, 12, 4}, at::kDouble);
  at::Tensor scores = at::rand({3, 12}, at::kDouble);
  Lengths lengths = at::tensor({12, 3, 0}, at::kLong);
};

TEST_F(TorchOps, PoolIsTheVariantForwardAndBackward) {
  for (const auto& [name, options] : std::vector<std::pair<std::string, Json>>{{"successive_halving", {{"base", 3.0}}},
                                                                               {"hard_topk", {{"gradient", "gated"}}},
                                                                               {"hard_topk", {{"gradient", "none"}}}})
    for (const auto& valid : {Lengths(), lengths}) {
      SCOPED_TRACE(name + options.dump());
      const auto selection = pooling_registry().select([&, n = name, o = options] {
        Json value = {{"name", n}};
        value.update(o);
        return value;
      }());
      const auto op = selection.variant->make(selection.options);
      const Differentiable through_dispatcher = [&, n = name, o = options](const std::vector<at::Tensor>& in) {
        const auto [values, kept, positions] = pool(in[0], in[1], 5, valid, n, o.dump());
        EXPECT_TRUE(at::equal(positions, op->forward(in[0], in[1], 5, valid).positions));
        return std::vector<at::Tensor>{values, kept};
      };
      const Differentiable direct = [&](const std::vector<at::Tensor>& in) {
        const auto pooled = op->forward(in[0], in[1], 5, valid);
        return std::vector<at::Tensor>{pooled.values, pooled.scores};
      };
      const auto found = through_dispatcher({x, scores}), expected = direct({x, scores});
      EXPECT_TRUE(at::equal(found[0], expected[0]) && at::equal(found[1], expected[1]));
      const auto cotangents = cotangents_for(direct, {x, scores});
      const auto gradients = gradients_of(direct, {x, scores}, cotangents);
      const auto recorded = gradients_of(through_dispatcher, {x, scores}, cotangents);
      const auto [again_x, again_scores] =
          pool_backward(cotangents[0], cotangents[1], x, scores, 5, valid, name, options.dump());
      EXPECT_TRUE(at::equal(recorded[0], gradients[0]) && at::equal(again_x, gradients[0])) << "x";
      EXPECT_TRUE(at::equal(recorded[1], gradients[1]) && at::equal(again_scores, gradients[1])) << "scores";
    }
}

TEST_F(TorchOps, BackwardRunsWhereGradientsAreOff) {
  const at::NoGradGuard no_gradient;
  const auto [x_gradient, scores_gradient] = pool_backward(at::ones({3, 5, 4}, at::kDouble), at::zeros({3, 5}, at::kDouble),
                                                           x, scores, 5, lengths, "successive_halving", "");
  EXPECT_GT(x_gradient.abs().sum().item<double>(), 0);
  EXPECT_FALSE(x_gradient.requires_grad());
}

TEST_F(TorchOps, AttendIsTheVariantForwardAndBackward) {
  const auto q = at::randn({3, 2, 12, 4}, at::kDouble), k = at::randn_like(q), v = at::randn_like(q);
  for (const bool causal : {false, true}) {
    const auto op = attention_registry().find("full").make({});
    const Differentiable direct = [&](const std::vector<at::Tensor>& in) {
      return std::vector<at::Tensor>{op->forward(in[0], in[1], in[2], {lengths, causal})};
    };
    const Differentiable through_dispatcher = [&](const std::vector<at::Tensor>& in) {
      return std::vector<at::Tensor>{attend(in[0], in[1], in[2], lengths, "full", causal ? R"({"causal": true})" : "")};
    };
    EXPECT_TRUE(at::equal(direct({q, k, v})[0], through_dispatcher({q, k, v})[0]));
    const auto cotangents = cotangents_for(direct, {q, k, v});
    const auto expected = gradients_of(direct, {q, k, v}, cotangents);
    const auto found = gradients_of(through_dispatcher, {q, k, v}, cotangents);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(close(found[i], expected[i], 1e-14, 1e-14)) << i;
  }
}

TEST_F(TorchOps, ResultsAreContiguousAndShareNoMemoryWithTheInputs) {
  const auto [values, kept, positions] = pool(x, scores, 12, std::nullopt, "noisy_for_test");
  EXPECT_TRUE(values.is_contiguous() && kept.is_contiguous() && positions.is_contiguous());
  EXPECT_FALSE(kept.is_alias_of(scores));
}

TEST_F(TorchOps, AttendLaysItsOutputOutAsQAndSharesNoMemory) {
  const auto rows = at::randn({3, 12, 2, 4}, at::kDouble), packed = at::randn({3, 12, 3, 2, 4}, at::kDouble);
  for (const auto* name : {"full", "blockwise", "lsh"}) {
    for (const auto& q : {rows.transpose(1, 2), packed.select(2, 1).transpose(1, 2)}) {
      const auto out = attend(q, q, q, std::nullopt, name, "");
      EXPECT_TRUE(out.transpose(1, 2).is_contiguous()) << name;
      EXPECT_FALSE(out.is_alias_of(q)) << name;
    }
    const auto q = rows.transpose(1, 2).contiguous();
    EXPECT_TRUE(attend(q, q, q, std::nullopt, name, "").is_contiguous()) << name;
  }
}

TEST_F(TorchOps, ASeedGivenAsTensorIsTheOption) {
  const auto one = pool_seeded(x, scores, 4, "noisy_for_test", 1);
  EXPECT_TRUE(
      at::equal(std::get<0>(one), std::get<0>(pool(x, scores, 4, std::nullopt, "noisy_for_test", R"({"seed": 1})"))));
  EXPECT_FALSE(at::equal(std::get<0>(one), std::get<0>(pool_seeded(x, scores, 4, "noisy_for_test", 2))));
  const auto ones = at::ones({3, 4, 4}, at::kDouble);
  const auto [x_gradient, scores_gradient] =
      pool_backward(ones, at::zeros({3, 4}, at::kDouble), x, scores, 4, std::nullopt, "noisy_for_test", "",
                    at::scalar_tensor(std::int64_t{1}, at::kLong));
  EXPECT_TRUE(close(x_gradient.narrow(1, 0, 4) * x.narrow(1, 0, 4), std::get<0>(one), 1e-12, 1e-12));
}

TEST_F(TorchOps, WithoutASeedEachCallDrawsAndItsGradientIsThatOfWhatItDrew) {
  const auto leaf = x.clone().requires_grad_();
  const auto values = std::get<0>(pool(leaf, scores, 4, std::nullopt, "noisy_for_test"));
  EXPECT_FALSE(at::equal(values, std::get<0>(pool(leaf, scores, 4, std::nullopt, "noisy_for_test"))));
  const auto gradient = torch::autograd::grad({values}, {leaf}, {at::ones_like(values)})[0];
  EXPECT_TRUE(close(gradient.narrow(1, 0, 4) * x.narrow(1, 0, 4), values.detach(), 1e-12, 1e-12));
}

TEST_F(TorchOps, TheGradientOfAForwardOnlyVariantIsRefusedByName) {
  const auto leaf = x.clone().requires_grad_();
  const auto values = std::get<0>(pool(leaf, scores, 4, std::nullopt, "forward_only_for_test"));
  EXPECT_TRUE(values.requires_grad());
  EXPECT_THAT(message_of<c10::ValueError>([&] { torch::autograd::grad({values}, {leaf}, {at::ones_like(values)}); }),
              AllOf(HasSubstr("\"forward_only_for_test\""), HasSubstr("not differentiable")));
}

TEST_F(TorchOps, WhatIsWrongIsAValueErrorOrATypeError) {
  const auto value_error = [&](std::int64_t k, const Lengths& valid, const char* name, const char* options) {
    return message_of<c10::ValueError>([&] { pool(x, scores, k, valid, name, options); });
  };
  EXPECT_THAT(value_error(13, {}, "hard_topk", ""), AllOf(HasSubstr("k: 13"), HasSubstr("1 to n = 12")));
  EXPECT_THAT(value_error(4, {}, "hard_top", ""), HasSubstr("did you mean \"hard_topk\""));
  EXPECT_THAT(value_error(4, {}, "hard_topk", R"({"bass": 2})"), HasSubstr("bass"));
  EXPECT_THAT(value_error(4, {}, "successive_halving", R"({"base": 0})"), HasSubstr("out of range"));
  EXPECT_THAT(value_error(4, {}, "hard_topk", "{"), HasSubstr("JSON text of an object"));
  EXPECT_THAT(value_error(4, {}, "hard_topk", "[1]"), HasSubstr("JSON text of an object"));
  EXPECT_THAT(value_error(4, {}, "hard_topk", R"({"name": "first_k"})"), HasSubstr("\"name\""));
  EXPECT_THAT(value_error(4, at::tensor({12, 13, 0}, at::kLong), "hard_topk", ""),
              AllOf(HasSubstr("lengths: 13"), HasSubstr("0 to 12")));
  EXPECT_THAT(value_error(4, at::tensor({12, -1, 0}, at::kLong), "hard_topk", ""), HasSubstr("lengths: -1"));
  EXPECT_THAT(message_of<c10::ValueError>([&] { pool(x.to(at::kFloat), scores, 4, {}, "noisy_for_test"); }),
              HasSubstr("does not support dtype float32"));
  const auto type_error = [](const std::function<void()>& call) { return message_of<c10::TypeError>(call); };
  EXPECT_THAT(type_error([&] { pool(x.to(at::kInt), scores, 4, {}, "hard_topk"); }), HasSubstr("Int"));
  EXPECT_THAT(type_error([&] { pool(x, scores.to(at::kHalf), 4, {}, "hard_topk"); }), HasSubstr("Half"));
  EXPECT_THAT(type_error([&] { pool(x, scores, 4, lengths->to(at::kInt), "hard_topk"); }), HasSubstr("int64"));
  const auto q = at::randn({3, 2, 12, 4});
  EXPECT_THAT(type_error([&] { attend(q, q.to(at::kDouble), q, {}, "full"); }), HasSubstr("Double"));
  EXPECT_THAT(message_of<c10::ValueError>([&] { attend(q, q[0], q, {}, "full"); }), HasSubstr("k: shape (2, 12, 4)"));
  EXPECT_THAT(message_of<c10::ValueError>([&] { attend(q, q, q, {}, "full", R"({"causal": 1})"); }), HasSubstr("causal"));
}

TEST_F(TorchOps, VariantsOfAKindAreListedAsJson) {
  const auto variants = find_operator<std::string(std::string_view)>("transpool::variants");
  const auto told = Json::parse(variants.call("pooling"));
  EXPECT_EQ(told.size(), pooling_registry().names().size());
  EXPECT_THAT(message_of<c10::ValueError>([&] { variants.call("poolin"); }), HasSubstr("did you mean \"pooling\""));
}

TEST_F(TorchOps, TheBackendIsToldAsRecordsNameIt) {
  const auto backend =
      find_operator<std::string(std::string_view, std::string_view, std::string_view, at::Device)>("transpool::backend");
  EXPECT_EQ(backend.call("pooling", "successive_halving", R"({"base": 3})", at::kCPU), "cpu");
  EXPECT_EQ(backend.call("attention", "full", "", at::kCPU), "sdpa");
  EXPECT_THAT(message_of<c10::ValueError>([&] { backend.call("poolin", "full", "", at::kCPU); }),
              HasSubstr("did you mean \"pooling\""));
  EXPECT_THAT(message_of<c10::ValueError>([&] { backend.call("pooling", "hard_topp", "", at::kCPU); }),
              HasSubstr("hard_topk"));
}

}  // namespace
}  // namespace transpool
