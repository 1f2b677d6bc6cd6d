#include "operators/attention/attention.h"

#include "tests/operators/variants.h"

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> lsh(std::int64_t bucket, std::int64_t rounds) {
  const auto selection = attention_registry().select({{"name", "lsh"}, {"bucket", bucket}, {"rounds", rounds}, {"seed", 1}});
  return selection.variant->make(selection.options);
}

TEST(Lsh, OneChunkIsFullAttentionToTheOtherRowsWithNormalisedKeys) {
  at::manual_seed(1);
  constexpr std::int64_t n = 9;
  const auto q = at::randn({2, 2, n, 4}, at::kDouble), v = at::randn({2, 2, n, 4}, at::kDouble);
  const auto logits = at::matmul(q, (q / q.norm(2, 3, true)).transpose(2, 3)) / 2;
  const auto self = at::eye(n, at::kBool);
  const auto expected = at::matmul(logits.masked_fill(self, -INFINITY).softmax(3), v);
  for (const std::int64_t rounds : {1, 2, 5})
    EXPECT_TRUE(close(lsh(16, rounds)->forward(q, at::full_like(q, NAN), v, {}), expected, 1e-12, 1e-12)) << rounds;
}

TEST(Lsh, ARowThatSeesNothingElseGivesItsOwnValue) {
  at::manual_seed(2);
  const auto q = at::randn({1, 2, 8, 4}, at::kDouble), v = at::randn({1, 2, 8, 4}, at::kDouble);
  const auto causal = lsh(2, 2)->forward(q, q, v, {.causal = true});
  EXPECT_TRUE(close(causal.select(2, 0), v.select(2, 0), 1e-12, 1e-12));
  const auto one = lsh(4, 2)->forward(q, q, v, {.key_lengths = at::tensor({1}, at::kLong)});
  EXPECT_TRUE(close(one.select(2, 0), v.select(2, 0), 1e-12, 1e-12));
  EXPECT_TRUE((one.narrow(2, 1, 7) == 0).all().item<bool>());
}

TEST(Lsh, UnreadKeysGetAGradientOfZerosAndEveryDtypeTheSameBuckets) {
  at::manual_seed(4);
  const auto q = at::randn({1, 2, 40, 4}), v = at::randn({1, 2, 40, 4});
  const auto k = at::full_like(q, NAN).requires_grad_();
  const auto gradient = torch::autograd::grad({lsh(4, 2)->forward(q, k, v, {}).sum()}, {k})[0];
  EXPECT_TRUE((gradient == 0).all().item<bool>());
  const auto twice = lsh(4, 2)->forward(q.to(at::kDouble), q.to(at::kDouble), v.to(at::kDouble), {});
  EXPECT_TRUE(close(lsh(4, 2)->forward(q, q, v, {}), twice.to(at::kFloat), 1e-5, 1e-5));
}

TEST(Lsh, RowsOfOneDirectionFindEachOther) {
  at::manual_seed(3);
  // Two directions in turns: each row's neighbours are those of its own direction, far apart in the sequence.
  constexpr std::int64_t n = 32;
  const auto direction = at::tensor({1.0, 0.0, 0.0, -1.0}, at::kDouble).view({2, 2});
  const auto q = 20 * direction.repeat({n / 2, 1}).view({1, 1, n, 2});
  const auto v = at::arange(n).remainder(2).to(at::kDouble).view({1, 1, n, 1}).expand({1, 1, n, 2}).contiguous();
  EXPECT_TRUE(close(lsh(8, 4)->forward(q, q, v, {}), v, 1e-4, 1e-4));
}

TEST(Lsh, MoreBucketsThanOneHashHasArePairsOfTwoHashes) {
  at::manual_seed(5);
  // Two hashes of two buckets, the signs of a projection each, are four buckets; their number decides what is sorted.
  const auto variant = [](std::int64_t most) {
    const auto selection =
        attention_registry().select({{"name", "lsh"}, {"bucket", 4}, {"rounds", 2}, {"hash_buckets", most}, {"seed", 1}});
    return std::pair{selection.variant->make(selection.options), selection.variant->reference(selection.options)};
  };
  for (const std::int64_t n : {7, 13, 64, 95}) {
    const auto q = at::randn({2, 2, n, 4}, at::kDouble), v = at::randn({2, 2, n, 4}, at::kDouble);
    for (const std::int64_t most : {2, 4, 128}) {
      const auto [op, reference] = variant(most);
      EXPECT_TRUE(close(op->forward(q, q, v, {}), reference->forward(q, q, v, {}), 1e-12, 1e-12)) << n << " " << most;
    }
  }
  const auto q = at::randn({1, 1, 64, 4}, at::kDouble);
  EXPECT_FALSE(at::equal(variant(2).first->forward(q, q, q, {}), variant(128).first->forward(q, q, q, {})));
}

TEST(Lsh, HashingGrowsWithLessThanTheSquareOfTheLength) {
  const auto hashing = [](std::int64_t n, std::int64_t most) {
    const auto selection = attention_registry().select({{"name", "lsh"}, {"bucket", 64}, {"hash_buckets", most}});
    const auto cost = selection.variant->cost({.queries = n, .keys = n, .head_width = 64}, selection.options);
    return cost.flops - cost.backward_flops / 2;
  };
  EXPECT_EQ(hashing(8192, 128), 8192 * 4 * 64 * 2.0 * 64);
  // 512 buckets are 24 x 22, of 12 and 11 planes.
  EXPECT_EQ(hashing(32768, 128), 32768 * 4 * 64 * 2.0 * 23);
  EXPECT_EQ(hashing(32768, 512), 32768 * 4 * 64 * 2.0 * 256);
}

TEST(Lsh, WorkGrowsWithTheRoundsAndLinearlyWithTheLength) {
  const auto flops = [](std::int64_t n, std::int64_t rounds) {
    const auto selection = attention_registry().select({{"name", "lsh"}, {"bucket", 64}, {"rounds", rounds}});
    return selection.variant->cost({.queries = n, .keys = n, .head_width = 64}, selection.options).backward_flops;
  };
  EXPECT_EQ(flops(4096, 1), 2 * flops(2048, 1));
  EXPECT_EQ(flops(2048, 4), 4 * flops(2048, 1));
}

}  // namespace
}  // namespace transpool
