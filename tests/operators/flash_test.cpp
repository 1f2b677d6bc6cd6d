#include "operators/attention/flash.h"

#include "operators/flop_formula.h"
#include "tests/operators/variants.h"

namespace transpool {
namespace {

constexpr std::int64_t batch = 2, heads = 3, rows = 5, width = 8;

TEST(SequenceForm, SeesRowsWithoutACopyInEveryUsualLayout) {
  const auto contiguous = at::randn({batch, heads, rows, width});
  const auto transposed = at::randn({batch, rows, heads, width}).transpose(1, 2);
  const auto packed = at::randn({batch, rows, 3, heads, width}).select(2, 1).transpose(1, 2);
  for (const auto& t : {contiguous, transposed, packed}) {
    const auto form = SequenceForm::of(t);
    for (const auto& seen : {form.sequences_of(t), form.packed(t)}) {
      EXPECT_EQ(seen.data_ptr(), t.data_ptr());
      EXPECT_TRUE(at::equal(form.heads_of(seen), t));
    }
    EXPECT_EQ(form.packed(t).size(0), form.sequences() * rows);
  }
}

TEST(SequenceForm, CopiesWhatHasNoSuchView) {
  const auto t = at::randn({batch, heads, width, rows}).transpose(2, 3);
  const auto form = SequenceForm::of(t);
  EXPECT_TRUE(at::equal(form.heads_of(form.packed(t)), t));
  const auto other = at::randn({batch, rows, heads, width}).transpose(1, 2);
  const auto by_head = SequenceForm::of(other.contiguous());
  EXPECT_TRUE(at::equal(by_head.heads_of(by_head.packed(other)), other));
}

/// Pairs of n queries and m keys that meet at their ends, counted one by one.
double counted_pairs(std::int64_t n, std::int64_t m, std::optional<std::int64_t> left, std::optional<std::int64_t> right) {
  double pairs = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < m; ++j) {
      const auto ahead = j - (i + m - n);
      pairs += (!left || -ahead <= *left) && (!right || ahead <= *right);
    }
  return pairs;
}

CallFlops flops_of(const std::string& name, const std::vector<c10::IValue>& arguments) {
  return flop_formulas().at(name)(c10::ArrayRef<const c10::IValue>(arguments.data(), arguments.size()));
}

TEST(FlashFlops, CountThePairsThatWindowsAllow) {
  using Bound = std::optional<std::int64_t>;
  for (const auto& [n, m] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {7, 7}, {5, 9}})
    for (const auto& left : {Bound(), Bound(0), Bound(2), Bound(20)})
      for (const auto& right : {Bound(), Bound(0), Bound(3), Bound(20)}) {
        const auto q = at::empty({batch, n, heads, width}), k = at::empty({batch, m, heads, width});
        const std::vector<c10::IValue> arguments = {q, k, k, {}, {}, n, m, 0.0, false, false, {}, left, right, {}, {}};
        const double pairs = batch * heads * counted_pairs(n, m, left, right);
        EXPECT_EQ(flops_of("aten::_flash_attention_forward", arguments).total, 4 * width * pairs) << n << " " << m;
      }
}

TEST(FlashFlops, TakeSegmentsToBeOfTheLongestLength) {
  const auto q = at::empty({20, heads, width}), bounds = at::tensor({0, 10, 20}, at::kInt);
  const std::vector<c10::IValue> arguments = {
      q,  q,  q, q, q, q, bounds, bounds, std::int64_t{10}, std::int64_t{10}, 0.0, true, at::Tensor(), at::Tensor(),
      {}, {}, {}};
  const double product = 2.0 * 2 * heads * 55 * width;
  const auto flops = flops_of("aten::_flash_attention_backward", arguments);
  EXPECT_EQ(flops.total, 5 * product);
  EXPECT_EQ(flops.recomputed, product);
}

}  // namespace
}  // namespace transpool
