#pragma once

#include "tests/operators/poolings.h"

namespace transpool {

inline at::Tensor weights_of(const Json& value, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths = std::nullopt) {
  return weights_of(*pooling(value), scores, k, lengths);
}

/// Values, scores, positions and gradients are those of the reference and of finite differences, with and without lengths.
inline void expect_right(const Json& value) {
  const auto selection = selected(value);
  const auto op = selection.variant->make(selection.options);
  const auto reference = selection.variant->reference(selection.options);
  struct Case {
    std::int64_t n, k;
    std::optional<at::Tensor> lengths;
  };
  for (const auto& c : {Case{9, 4, std::nullopt}, Case{9, 4, lengths_of({6, 3})}, Case{6, 6, std::nullopt},
                        Case{6, 6, lengths_of({6, 1})}, Case{5, 1, lengths_of({5, 0})}, Case{1, 1, std::nullopt}}) {
    SCOPED_TRACE(value.dump() + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
    const std::vector<at::Tensor> inputs = {at::randn({2, c.n, 3}, at::kDouble), at::rand({2, c.n}, at::kDouble)};
    const auto found = op->forward(inputs[0], inputs[1], c.k, c.lengths);
    const auto expected = reference->forward(inputs[0], inputs[1], c.k, c.lengths);
    EXPECT_TRUE(close(found.values, expected.values, 1e-10, 1e-10)) << "values";
    EXPECT_TRUE(close(found.scores, expected.scores, 1e-10, 1e-10)) << "scores";
    EXPECT_TRUE(at::equal(found.positions, expected.positions)) << found.positions << expected.positions;
    const auto function = pooled_by(op, c.k, c.lengths);
    const auto cotangents = cotangents_for(function, inputs);
    const auto gradients = gradients_of(function, inputs, cotangents);
    const auto others = gradients_of(pooled_by(reference, c.k, c.lengths), inputs, cotangents);
    EXPECT_TRUE(close(gradients[0], others[0], 1e-9, 1e-10)) << "gradient of x";
    EXPECT_TRUE(close(gradients[1], others[1], 1e-9, 1e-10)) << "gradient of the scores";
    if (c.n > 1) {
      EXPECT_GT(gradients[1].abs().max().item<double>(), 1e-6) << "nothing to compare";
    }
    EXPECT_TRUE(gradients_match_differences(function, inputs));
  }
}

/// The same beside the reference alone, at sizes that are worked on in several parts, with ties and with lengths.
inline void expect_right_in_parts(const Json& value) {
  const auto op = pooling(value), reference = pooling(value, /*reference=*/true);
  constexpr std::int64_t n = 300, k = 70, width = 150;
  for (const bool ties : {false, true})
    for (const auto& lengths : {std::optional<at::Tensor>(), std::optional(lengths_of({n, 200, 40}))}) {
      SCOPED_TRACE(value.dump() + (ties ? " ties" : "") + (lengths ? " lengths" : ""));
      const auto scores = at::rand({3, n}, at::kDouble);
      const std::vector<at::Tensor> inputs = {at::randn({3, n, width}, at::kDouble),
                                              ties ? at::floor(scores * 9) / 9 : scores};
      const auto found = op->forward(inputs[0], inputs[1], k, lengths);
      const auto expected = reference->forward(inputs[0], inputs[1], k, lengths);
      EXPECT_TRUE(close(found.values, expected.values, 1e-9, 1e-9)) << "values";
      EXPECT_TRUE(close(found.scores, expected.scores, 1e-9, 1e-9)) << "scores";
      EXPECT_TRUE(at::equal(found.positions, expected.positions)) << "positions";
      const auto function = pooled_by(op, k, lengths);
      const auto cotangents = cotangents_for(function, inputs);
      const auto gradients = gradients_of(function, inputs, cotangents);
      const auto others = gradients_of(pooled_by(reference, k, lengths), inputs, cotangents);
      for (std::size_t i = 0; i < 2; ++i)
        EXPECT_TRUE(close(gradients[i], others[i], 1e-7, 1e-7 * others[i].abs().max().item<double>())) << "gradient " << i;
    }
}

/// Mean over the outputs of hard top-k of the best cosine with an output of the operator, on uniform scores in [0, 1] and
/// rows in [-1, 1]^32, as the benchmark of arXiv 2010.15552 takes it.
inline double closeness_to_hard_topk(const Json& value, std::int64_t n, std::int64_t k, std::int64_t batch) {
  const auto x = at::rand({batch, n, 32}) * 2 - 1;
  const auto scores = at::rand({batch, n});
  const auto unit = [](const at::Tensor& rows) { return rows / rows.norm(2, {2}, /*keepdim=*/true); };
  const auto found = unit(pooling(value)->forward(x, scores, k, std::nullopt).values);
  const auto hard = unit(pooling({{"name", "hard_topk"}, {"gradient", "none"}})->forward(x, scores, k, std::nullopt).values);
  return at::bmm(hard, found.transpose(1, 2)).amax(2).mean().item<double>();
}

}  // namespace transpool
