#include "operators/attention/attention.h"

#include "tests/operators/variants.h"

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> make(const Json& value) {
  const auto selection = attention_registry().select(value);
  return selection.variant->make(selection.options);
}

std::shared_ptr<const AttentionOperator> linformer(std::int64_t rows, const std::string& projection = "mean",
                                                   std::int64_t seed = 1) {
  return make({{"name", "linformer"}, {"projected_length", rows}, {"projection", projection}, {"seed", seed}});
}

at::Tensor heads(std::int64_t n) { return at::randn({2, 2, n, 4}, at::kDouble); }

TEST(Linformer, MeansOfOneRowEachAreFullAttention) {
  at::manual_seed(1);
  const auto full = make("full_math");
  const auto q = heads(5), k = heads(9), v = heads(9);
  for (const auto& lengths : {std::optional<at::Tensor>(), std::optional(at::tensor({9, 4}, at::kLong))})
    for (const std::int64_t rows : {9, 10, 40})
      EXPECT_TRUE(close(linformer(rows)->forward(q, k, v, {.key_lengths = lengths}),
                        full->forward(q, k, v, {.key_lengths = lengths}), 1e-12, 1e-12))
          << rows;
}

TEST(Linformer, OneMeanRowIsTheMeanOfTheValidValues) {
  at::manual_seed(2);
  const auto q = heads(6), k = heads(6), v = heads(6);
  const auto out = linformer(1)->forward(q, k, v, {.key_lengths = at::tensor({6, 4}, at::kLong)});
  EXPECT_TRUE(close(out[0], v[0].mean(1, true).expand_as(out[0]), 1e-12, 1e-12));
  EXPECT_TRUE(close(out[1], v[1].narrow(1, 0, 4).mean(1, true).expand_as(out[1]), 1e-12, 1e-12));
}

TEST(Linformer, AMeanOfALengthIsThatOfTheShorterSequence) {
  at::manual_seed(3);
  const auto q = heads(13), k = heads(13), v = heads(13);
  const auto cut = [](const at::Tensor& t) { return t.narrow(2, 0, 7); };
  EXPECT_TRUE(close(linformer(3)->forward(q, k, v, {.key_lengths = at::tensor({7, 7}, at::kLong)}),
                    linformer(3)->forward(q, cut(k), cut(v), {}), 1e-12, 1e-12));
}

TEST(Linformer, RandomProjectionsKeepInnerProductsOnAverage) {
  at::manual_seed(4);
  // With q = 0 all p weights are 1/p: a feature's output is the mean of p Gaussians of variance |v_f|^2 / p each, so its
  // square is |v_f|^2 / p^2 on average over seeds.
  const auto v = at::randn({1, 1, 10, 4}, at::kDouble);
  const auto zero = at::zeros_like(v);
  constexpr std::int64_t rows = 8, draws = 400;
  double squares = 0;
  for (std::int64_t seed = 0; seed < draws; ++seed)
    squares += linformer(rows, "random", seed)->forward(zero, zero, v, {}).select(2, 0).square().sum().item<double>();
  EXPECT_NEAR(squares / draws * rows * rows / v.square().sum().item<double>(), 1, 0.15);
}

}  // namespace
}  // namespace transpool
