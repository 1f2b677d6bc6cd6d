#include "operators/attention/attention.h"

#include "tests/operators/variants.h"

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> efficient() { return attention_registry().find("efficient").make({}); }

TEST(Efficient, EqualKeysGiveTheMeanOfTheValidValues) {
  at::manual_seed(1);
  const auto q = at::randn({2, 2, 7, 4}, at::kDouble), v = at::randn({2, 2, 7, 4}, at::kDouble);
  const auto out = efficient()->forward(q, at::full_like(q, 0.3), v, {.key_lengths = at::tensor({7, 3}, at::kLong)});
  EXPECT_TRUE(close(out[0], v[0].mean(1, true).expand_as(v[0]), 1e-12, 1e-12));
  EXPECT_TRUE(close(out[1], v[1].narrow(1, 0, 3).mean(1, true).expand_as(v[1]), 1e-12, 1e-12));
}

TEST(Efficient, APeakedFeatureFetchesTheRowItsKeysPointTo) {
  at::manual_seed(2);
  // Feature f of the keys points to row f + 1, feature i of query i is the only one: row i gets the value of row i + 1.
  const auto q = 50 * at::eye(4, at::kDouble).view({1, 1, 4, 4});
  const auto k = q.roll(1, 2);
  const auto v = at::randn({1, 1, 4, 4}, at::kDouble);
  EXPECT_TRUE(close(efficient()->forward(q, k, v, {}), v.roll(-1, 2), 1e-12, 1e-12));
}

TEST(Efficient, WorkIsLinearInTheLength) {
  const auto flops = [](std::int64_t n) {
    return attention_registry().find("efficient").cost({.queries = n, .keys = n, .head_width = 64}, {}).flops;
  };
  EXPECT_EQ(flops(4096), 2 * flops(2048));
  EXPECT_EQ(flops(2048), 4.0 * 2048 * 64 * 64);
}

}  // namespace
}  // namespace transpool
