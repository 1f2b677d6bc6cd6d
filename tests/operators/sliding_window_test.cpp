#include "operators/attention/attention.h"

#include "tests/operators/variants.h"

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> make(const Json& value) {
  const auto selection = attention_registry().select(value);
  return selection.variant->make(selection.options);
}

std::shared_ptr<const AttentionOperator> window(std::int64_t rows, std::int64_t global = 0) {
  return make({{"name", "sliding_window"}, {"window", rows}, {"global_tokens", global}});
}

at::Tensor heads(std::int64_t n) { return at::randn({2, 2, n, 4}, at::kDouble); }

/// Which values reach which output rows (n, n): each value is one of its own column.
at::Tensor reach(const AttentionOperator& op, std::int64_t n, const AttentionMask& mask = {}) {
  const auto q = at::randn({1, 1, n, n}, at::kDouble), k = at::randn({1, 1, n, n}, at::kDouble);
  return op.forward(q, k, at::eye(n, at::kDouble).view({1, 1, n, n}), mask)[0][0] > 0;
}

TEST(SlidingWindow, AWindowOverAllRowsIsFullAttention) {
  at::manual_seed(1);
  const auto full = make("full_math");
  for (const std::int64_t n : {1, 2, 7, 12})
    for (const bool causal : {false, true})
      for (const auto& lengths : {std::optional<at::Tensor>(), std::optional(at::tensor({n, n / 2}, at::kLong))}) {
        const AttentionMask mask{.key_lengths = lengths, .causal = causal};
        const auto q = heads(n), k = heads(n), v = heads(n);
        for (const auto rows : {std::max<std::int64_t>(1, n - 1), n, 4 * n})
          EXPECT_TRUE(close(window(rows)->forward(q, k, v, mask), full->forward(q, k, v, mask), 1e-12, 1e-12)) << n << rows;
        EXPECT_TRUE(close(window(1, n)->forward(q, k, v, mask), full->forward(q, k, v, mask), 1e-12, 1e-12)) << n;
      }
}

TEST(SlidingWindow, EachRowReachesItsNeighboursAndTheGlobalRows) {
  at::manual_seed(2);
  constexpr std::int64_t n = 11;
  const auto row = at::arange(n).unsqueeze(1), column = at::arange(n).unsqueeze(0);
  for (const std::int64_t w : {1, 2, 3, 5})
    for (const std::int64_t g : {0, 1, 4}) {
      const auto expected = ((row - column).abs() <= w).logical_or(row < g).logical_or(column < g);
      EXPECT_TRUE(at::equal(reach(*window(w, g), n), expected)) << w << " " << g;
      EXPECT_TRUE(at::equal(reach(*window(w, g), n, {.causal = true}), expected.logical_and(column <= row)))
          << w << " " << g;
    }
}

TEST(SlidingWindow, DeclaredPairsAreThoseThatTheDefinitionAllows) {
  constexpr std::int64_t n = 11;
  const auto& variant = attention_registry().find("sliding_window");
  for (const std::int64_t w : {1, 3, 10, 40})
    for (const std::int64_t g : {0, 1, 4, 40})
      for (const bool causal : {false, true}) {
        const auto options =
            attention_registry().select({{"name", "sliding_window"}, {"window", w}, {"global_tokens", g}}).options;
        const auto cost = variant.cost({.queries = n, .keys = n, .head_width = 2, .causal = causal}, options);
        const auto pairs = reach(*window(w, g), n, {.causal = causal}).sum().item<std::int64_t>();
        EXPECT_EQ(cost.flops, static_cast<double>(4 * 2 * pairs)) << w << " " << g << causal;
      }
}

}  // namespace
}  // namespace transpool
