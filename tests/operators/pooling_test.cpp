#include "tests/operators/poolings.h"

#include <gmock/gmock.h>

#include <limits>
#include <set>

namespace transpool {
namespace {

using testing::HasSubstr;

constexpr double infinity = std::numeric_limits<double>::infinity();
const double nan = std::nan("");

using Lengths = std::optional<at::Tensor>;

struct Case {
  std::int64_t n, k;
};

const std::vector<Case> cases = {{16, 4}, {17, 4}, {31, 5}, {8, 8}, {9, 1}, {5, 3}, {64, 16}};

struct Instance {
  const PoolingVariant* variant;
  Options options;
  std::string label;
  std::shared_ptr<const PoolingOperator> op, reference;

  bool fits(const Case& c) const { return !variant->capabilities.pooled_length_divides_length || c.n % c.k == 0; }
  /// Whether the gradient is the derivative of the value.
  bool true_gradient() const {
    return variant->capabilities.differentiable && op->passes_score_gradient() &&
           !(options.has("gradient") && options.text("gradient") == "straight_through");
  }
};

std::vector<Instance> instances() {
  std::vector<Instance> all;
  for (const auto& [name, variant] : pooling_registry().all()) {
    if (!runs_by_name(variant)) continue;
    for (const auto& value : option_combinations(variant, {{"base", {20.0, 2.0}}, {"seed", {1}}})) {
      const auto selection = pooling_registry().select(value);
      all.push_back({selection.variant, selection.options, value.dump(), variant.make(selection.options),
                     variant.reference(selection.options)});
    }
  }
  return all;
}

at::Tensor random_scores(std::int64_t batch, std::int64_t n, at::ScalarType dtype = at::kDouble) {
  return at::rand({batch, n}, dtype);
}

void expect_same(const Pooled& a, const Pooled& b, double tolerance) {
  EXPECT_TRUE(close(a.values, b.values, tolerance, tolerance)) << "values";
  EXPECT_TRUE(close(a.scores, b.scores, tolerance, tolerance)) << "scores";
  EXPECT_TRUE(at::equal(a.positions, b.positions)) << "positions\n" << a.positions << "\nreference\n" << b.positions;
}

void expect_gradients_of_reference(const Instance& instance, const std::vector<at::Tensor>& inputs, std::int64_t k,
                                   const Lengths& lengths) {
  const auto op = pooled_by(instance.op, k, lengths);
  const auto cotangents = cotangents_for(op, inputs);
  const auto found = gradients_of(op, inputs, cotangents);
  const auto expected = gradients_of(pooled_by(instance.reference, k, lengths), inputs, cotangents);
  EXPECT_TRUE(close(found[0], expected[0], 1e-9, 1e-10)) << "gradient of x";
  EXPECT_TRUE(close(found[1], expected[1], 1e-9, 1e-10)) << "gradient of the scores";
}

std::vector<Lengths> lengths_to_try(std::int64_t batch, const Case& c) {
  if (batch == 1) return {std::nullopt, lengths_of({std::max<std::int64_t>(1, c.k - 1)}), lengths_of({0})};
  return {std::nullopt, lengths_of({c.n, (c.n + c.k) / 2, c.k}), lengths_of({0, 1, std::max<std::int64_t>(0, c.k - 1)})};
}

class Pooling : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20090516); }
};

TEST_F(Pooling, EveryVariantEqualsItsReference) {
  for (const auto& instance : instances())
    for (const auto& c : cases) {
      if (!instance.fits(c)) continue;
      for (const std::int64_t batch : {1, 3})
        for (const auto& lengths : lengths_to_try(batch, c))
          for (const auto dtype : {at::kDouble, at::kFloat}) {
            SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " batch " +
                         std::to_string(batch) + " lengths " +
                         (lengths ? (std::ostringstream() << *lengths).str() : "none"));
            const auto x = at::randn({batch, c.n, 6}, dtype);
            const auto scores = random_scores(batch, c.n, dtype);
            const auto pooled = instance.op->forward(x, scores, c.k, lengths);
            expect_same(pooled, instance.reference->forward(x, scores, c.k, lengths), dtype == at::kDouble ? 1e-10 : 1e-5);
            EXPECT_EQ(pooled.values.scalar_type(), dtype);
            EXPECT_EQ(pooled.positions.scalar_type(), at::kLong);
          }
    }
}

TEST_F(Pooling, EveryVariantHasTheGradientOfItsReference) {
  for (const auto& instance : instances()) {
    if (!instance.true_gradient()) continue;
    for (const auto& c : cases) {
      if (!instance.fits(c)) continue;
      for (const auto& lengths : lengths_to_try(3, c)) {
        SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
        const std::vector<at::Tensor> inputs = {at::randn({3, c.n, 4}, at::kDouble), random_scores(3, c.n)};
        expect_gradients_of_reference(instance, inputs, c.k, lengths);
      }
    }
  }
}

TEST_F(Pooling, GradientsMatchFiniteDifferences) {
  for (const auto& instance : instances()) {
    if (!instance.true_gradient() || instance.variant->capabilities.estimated_gradient) continue;
    for (const Case c : {Case{7, 2}, Case{8, 4}}) {
      if (!instance.fits(c)) continue;
      SCOPED_TRACE(instance.label + " n " + std::to_string(c.n));
      const Lengths lengths = c.n == 7 ? Lengths(lengths_of({7, 3})) : std::nullopt;
      EXPECT_TRUE(gradients_match_differences(pooled_by(instance.op, c.k, lengths),
                                              {at::randn({2, c.n, 2}, at::kDouble), random_scores(2, c.n)}));
    }
  }
}

TEST_F(Pooling, RowsPastTheLengthAreZeroWithPositionMinusOneAndComeLast) {
  for (const auto& instance : instances())
    for (const auto& c : cases) {
      if (!instance.fits(c)) continue;
      SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
      const std::vector<std::int64_t> given = {0, 1, c.k - 1, c.n};
      const auto pooled =
          instance.op->forward(at::randn({4, c.n, 3}), random_scores(4, c.n, at::kFloat), c.k, lengths_of(given));
      for (std::int64_t b = 0; b < 4; ++b) {
        const auto length = given[static_cast<std::size_t>(b)];
        const auto left = std::min(c.k, length);
        const auto real = pooled.positions[b].narrow(0, 0, left);
        EXPECT_TRUE(((real >= 0) & (real < length)).all().item<bool>());
        if (instance.variant->distinct_rows) {
          EXPECT_EQ(std::get<0>(at::_unique2(real)).size(0), left) << "a row twice";
        }
        EXPECT_TRUE((pooled.positions[b].narrow(0, left, c.k - left) == -1).all().item<bool>());
        EXPECT_TRUE((pooled.values[b].narrow(0, left, c.k - left) == 0).all().item<bool>());
        EXPECT_TRUE((pooled.scores[b].narrow(0, left, c.k - left) == 0).all().item<bool>());
      }
    }
}

TEST_F(Pooling, PaddedRowsNeverLeakWhateverTheyHold) {
  for (const auto& instance : instances())
    for (const auto& c : cases) {
      if (!instance.fits(c)) continue;
      for (const double poison : {nan, infinity, -infinity, 1e30}) {
        SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " poison " +
                     std::to_string(poison));
        const auto lengths = lengths_of({c.n, c.n / 2, 1, 0});
        const auto padded = (at::arange(c.n).unsqueeze(0) >= lengths.unsqueeze(1));
        const auto x = at::randn({4, c.n, 3}, at::kDouble);
        const auto scores = random_scores(4, c.n);
        const auto poisoned_x = x.masked_fill(padded.unsqueeze(2), poison);
        const auto poisoned_scores = scores.masked_fill(padded, poison);
        expect_same(instance.op->forward(poisoned_x, poisoned_scores, c.k, lengths),
                    instance.op->forward(x, scores, c.k, lengths), 0);

        if (!instance.variant->capabilities.differentiable) continue;
        const auto op = pooled_by(instance.op, c.k, lengths);
        const auto cotangents = cotangents_for(op, {x, scores});
        // The allocator hands this memory out again: a gradient that was not written would show it.
        { const auto garbage = at::full({4, c.n, 3}, nan, at::kDouble); }
        const auto found = gradients_of(op, {poisoned_x, poisoned_scores}, cotangents);
        const auto expected = gradients_of(op, {x, scores}, cotangents);
        EXPECT_TRUE(at::equal(found[0], expected[0])) << "gradient of x";
        EXPECT_TRUE(at::equal(found[1], expected[1])) << "gradient of the scores";
        EXPECT_TRUE((found[0].masked_select(padded.unsqueeze(2)) == 0).all().item<bool>());
        EXPECT_TRUE((found[1].masked_select(padded) == 0).all().item<bool>());
      }
    }
}

TEST_F(Pooling, TiesAreDeterministicAndEqualTheReference) {
  for (const auto& instance : instances())
    for (const auto& c : cases) {
      if (!instance.fits(c)) continue;
      for (const auto& lengths : {Lengths(), Lengths(lengths_of({c.n, c.n / 2}))}) {
        SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
        const std::vector<at::Tensor> inputs = {at::randn({2, c.n, 3}, at::kDouble),
                                                at::floor(random_scores(2, c.n) * 3) / 3};
        const auto pooled = instance.op->forward(inputs[0], inputs[1], c.k, lengths);
        expect_same(pooled, instance.op->forward(inputs[0], inputs[1], c.k, lengths), 0);
        auto expected_rows = instance.reference->forward(inputs[0], inputs[1], c.k, lengths);
        // Which of two rows that a mixture weighs alike leads it is for the last digits of the weights to say.
        if (!instance.variant->distinct_rows) expected_rows.positions = pooled.positions;
        expect_same(pooled, expected_rows, 1e-12);
        if (!instance.true_gradient()) continue;
        expect_gradients_of_reference(instance, inputs, c.k, lengths);
      }
    }
}

TEST_F(Pooling, EqualScoresKeepTheLowestPositions) {
  for (const auto& instance : instances()) {
    if (!std::set<std::string>{"hard_topk", "successive_halving", "successive_halving_rounds"}.contains(
            instance.variant->name))
      continue;
    for (const auto& c : cases) {
      SCOPED_TRACE(instance.label);
      const auto pooled = instance.op->forward(at::randn({2, c.n, 3}), at::full({2, c.n}, 0.5), c.k, std::nullopt);
      EXPECT_TRUE(at::equal(pooled.positions, at::arange(c.k).expand({2, c.k}))) << pooled.positions;
    }
  }
}

TEST_F(Pooling, InfiniteAndNanScoresGiveFiniteValuesAndGradients) {
  const std::vector<std::vector<double>> rows = {
      {infinity, 0.1, 0.2, -infinity, nan, 0.9, infinity, 0.3},
      {nan, nan, nan, nan, nan, nan, nan, nan},
      {infinity, infinity, infinity, infinity, infinity, infinity, infinity, infinity},
      {-infinity, -infinity, -infinity, -infinity, -infinity, -infinity, -infinity, -infinity},
      {400, 400, 400, 399, 0.5, -400, -400, nan},
      {nan, 0.5, -infinity, 0.4, nan, 0.3, -infinity, 0.2}};
  std::vector<at::Tensor> stacked;
  for (const auto& row : rows) stacked.push_back(at::tensor(row, at::kDouble));
  const auto scores = at::stack(stacked);
  const auto x = at::randn({scores.size(0), 8, 3}, at::kDouble);
  for (const auto& instance : instances())
    for (const std::int64_t k : {1, 2, 3, 4, 8}) {
      if (!instance.fits({8, k})) continue;
      SCOPED_TRACE(instance.label + " k " + std::to_string(k));
      const auto pooled = instance.op->forward(x, scores, k, std::nullopt);
      EXPECT_TRUE(finite(pooled.values)) << pooled.values;
      EXPECT_FALSE(pooled.scores.isnan().any().item<bool>()) << pooled.scores;
      expect_same(pooled, instance.reference->forward(x, scores, k, std::nullopt), 1e-12);
      if (!instance.variant->capabilities.differentiable) continue;
      const auto op = pooled_by(instance.op, k, std::nullopt);
      const auto cotangents = cotangents_for(op, {x, scores});
      const auto found = gradients_of(op, {x, scores}, cotangents);
      EXPECT_TRUE(finite(found[0])) << found[0];
      EXPECT_TRUE(finite(found[1])) << found[1];
      EXPECT_TRUE((found[1].masked_select(scores.isnan()) == 0).all().item<bool>()) << "gradient of a NaN score";
      if (!instance.true_gradient()) continue;
      const auto expected = gradients_of(pooled_by(instance.reference, k, std::nullopt), {x, scores}, cotangents);
      EXPECT_TRUE(close(found[0], expected[0], 1e-9, 1e-10)) << "gradient of x";
      EXPECT_TRUE(close(found[1], expected[1], 1e-9, 1e-10)) << found[1] << expected[1];
    }
}

TEST_F(Pooling, KeepingAllRowsIsTheIdentityAsASet) {
  for (const auto& instance : instances())
    for (const std::int64_t n : {1, 5, 8}) {
      if (!instance.variant->distinct_rows) continue;
      SCOPED_TRACE(instance.label + " n " + std::to_string(n));
      const auto x = at::randn({2, n, 3}, at::kDouble);
      // Scores of 1 leave gated rows as they are.
      for (const auto& scores : {at::ones({2, n}, at::kDouble), random_scores(2, n)}) {
        const auto pooled = instance.op->forward(x, scores, n, std::nullopt);
        EXPECT_TRUE(at::equal(std::get<0>(pooled.positions.sort(1)), at::arange(n).expand({2, n})));
        EXPECT_TRUE(at::equal(pooled.scores, scores.gather(1, pooled.positions)));
        auto rows = x.gather(1, pooled.positions.unsqueeze(2).expand({2, n, 3}));
        if (instance.options.has("gradient") && instance.options.text("gradient") == "gated")
          rows = rows * pooled.scores.unsqueeze(2);
        EXPECT_TRUE(close(pooled.values, rows, 1e-15, 1e-15));
      }
    }
}

TEST_F(Pooling, SharpRelaxationsAreHardTopk) {
  const auto hard = pooling({{"name", "hard_topk"}, {"gradient", "none"}});
  for (const auto& [name, variant] : pooling_registry().all()) {
    if (variant.sharp.is_null()) continue;
    for (const auto& c : cases) {
      if (variant.capabilities.pooled_length_divides_length && c.n % c.k != 0) continue;
      SCOPED_TRACE(name + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
      Json value = {{"name", name}};
      value.update(variant.sharp);
      const auto x = at::randn({2, c.n, 3}, at::kDouble);
      // Neighbouring ranks differ by 1 / n, so that there is a sharpness at which none of them mix.
      const auto ranks = std::get<1>(std::get<1>(at::rand({2, c.n}, at::kDouble).sort(1)).sort(1));
      const auto scores = (ranks.to(at::kDouble) + 0.5) / static_cast<double>(c.n);
      const auto found = pooling(value)->forward(x, scores, c.k, std::nullopt);
      const auto expected = hard->forward(x, scores, c.k, std::nullopt);
      const auto order = std::get<1>(found.positions.sort(1));
      EXPECT_TRUE(at::equal(found.positions.gather(1, order), expected.positions)) << found.positions;
      EXPECT_TRUE(close(found.values.gather(1, order.unsqueeze(2).expand({2, c.k, 3})), expected.values, 1e-3, 1e-3));
    }
  }
}

TEST_F(Pooling, ThePositionWeighsMostAndWeightsOfMixturesSumToOne) {
  for (const auto& instance : instances()) {
    if (instance.variant->distinct_rows) continue;
    for (const auto& c : cases) {
      if (!instance.fits(c)) continue;
      SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
      // Pooling the unit vectors shows the weights themselves.
      const auto rows = at::eye(c.n, at::kDouble).expand({2, c.n, c.n});
      const auto scores = random_scores(2, c.n);
      const auto pooled = instance.op->forward(rows, scores, c.k, std::nullopt);
      EXPECT_TRUE(close(pooled.values.sum(2), at::ones({2, c.k}, at::kDouble), 1e-9, 1e-9));
      EXPECT_TRUE((pooled.values > -1e-12).all().item<bool>());
      const auto at_position = pooled.values.gather(2, pooled.positions.unsqueeze(2)).squeeze(2);
      EXPECT_TRUE(close(at_position, pooled.values.amax(2), 1e-12, 1e-12));
      EXPECT_TRUE(close(pooled.scores, at::matmul(pooled.values, scores.unsqueeze(2)).squeeze(2), 1e-9, 1e-9));
    }
  }
}

TEST_F(Pooling, BatchElementsAreIndependent) {
  for (const auto& instance : instances())
    for (const auto& c : cases) {
      if (!instance.fits(c) || instance.variant->capabilities.stochastic) continue;
      SCOPED_TRACE(instance.label + " n " + std::to_string(c.n) + " k " + std::to_string(c.k));
      const auto x = at::randn({3, c.n, 4}, at::kDouble);
      const auto scores = random_scores(3, c.n);
      const auto lengths = lengths_of({c.n, c.k, 1});
      const auto together = instance.op->forward(x, scores, c.k, lengths);
      for (std::int64_t b = 0; b < 3; ++b) {
        const auto alone =
            instance.op->forward(x.narrow(0, b, 1), scores.narrow(0, b, 1), c.k, Lengths(lengths.narrow(0, b, 1)));
        expect_same(alone,
                    {together.values.narrow(0, b, 1), together.scores.narrow(0, b, 1), together.positions.narrow(0, b, 1)},
                    1e-12);
      }
    }
}

TEST_F(Pooling, NonContiguousInputsGiveTheSame) {
  for (const auto& instance : instances()) {
    SCOPED_TRACE(instance.label);
    const auto x = at::randn({3, 16, 2}, at::kDouble).transpose(0, 2).contiguous().transpose(0, 2);
    const auto scores = at::rand({16, 3}, at::kDouble).t();
    expect_same(instance.op->forward(x, scores, 4, std::nullopt),
                instance.op->forward(x.contiguous(), scores.contiguous(), 4, std::nullopt), 1e-13);
  }
}

TEST_F(Pooling, HalfTypesStayCloseToFloat32) {
  for (const auto& instance : instances())
    for (const auto dtype : {at::kBFloat16, at::kHalf})
      for (const auto& c : cases) {
        if (!instance.fits(c)) continue;
        SCOPED_TRACE(instance.label + " " + dtype_name(dtype) + " n " + std::to_string(c.n));
        const auto x = at::randn({2, c.n, 8}).to(dtype);
        const auto scores = random_scores(2, c.n, at::kFloat);
        const auto half = instance.op->forward(x, scores, c.k, std::nullopt);
        const auto single = instance.op->forward(x.to(at::kFloat), scores, c.k, std::nullopt);
        EXPECT_EQ(half.values.scalar_type(), dtype);
        EXPECT_TRUE(close(half.values.to(at::kFloat), single.values, 1e-2, 1e-2));
        EXPECT_TRUE(close(half.scores, single.scores, 1e-6, 1e-6));
        EXPECT_TRUE(at::equal(half.positions, single.positions));
      }
}

TEST_F(Pooling, RefusedArgumentsAreNamedWithTheirValueAndWhatIsAllowed) {
  const auto x = at::randn({2, 5, 3});
  const auto scores = at::rand({2, 5});
  for (const auto& instance : instances()) {
    SCOPED_TRACE(instance.label);
    const auto refusal = [&](const at::Tensor& rows, const at::Tensor& given, std::int64_t k, const Lengths& lengths) {
      return message_of([&] { instance.op->forward(rows, given, k, lengths); });
    };
    EXPECT_THAT(refusal(x, scores, 0, {}), testing::AllOf(HasSubstr("k: 0"), HasSubstr("allowed: 1 to n = 5")));
    EXPECT_THAT(refusal(x, scores, -2, {}), HasSubstr("k: -2"));
    EXPECT_THAT(refusal(x, scores, 6, {}), testing::AllOf(HasSubstr("k: 6"), HasSubstr("allowed: 1 to n = 5")));
    EXPECT_THAT(refusal(x[0], scores, 2, {}), testing::AllOf(HasSubstr("x: 2 dimensions"), HasSubstr("(B, n, d)")));
    EXPECT_THAT(refusal(x.to(at::kInt), scores, 2, {}), testing::AllOf(HasSubstr("x: "), HasSubstr("Int")));
    EXPECT_THAT(refusal(x, scores.narrow(1, 0, 4), 2, {}),
                testing::AllOf(HasSubstr("scores: shape [2, 4]"), HasSubstr("(2, 5)")));
    EXPECT_THAT(refusal(x, scores[0], 2, {}), HasSubstr("scores: shape [5]"));
    EXPECT_THAT(refusal(x, scores.to(at::kBFloat16), 2, {}),
                testing::AllOf(HasSubstr("scores: BFloat16"), HasSubstr("float32, float64")));
    EXPECT_THAT(refusal(x.narrow(0, 0, 0), scores.narrow(0, 0, 0), 2, {}), HasSubstr("x: batch 0"));
    EXPECT_THAT(refusal(x, scores, 2, lengths_of({1, 2, 3})), testing::AllOf(HasSubstr("lengths: [3]"), HasSubstr("(2,)")));
    EXPECT_THAT(refusal(x, scores, 2, lengths_of({1, 2}).to(at::kInt)),
                testing::AllOf(HasSubstr("lengths: "), HasSubstr("Int"), HasSubstr("int64")));
    EXPECT_THAT(refusal(x, scores, 2, lengths_of({1, 2}).unsqueeze(1)), HasSubstr("lengths: [2, 1]"));
    EXPECT_THAT(refusal(x, scores, 2, lengths_of({1, 6})), HasSubstr("lengths: 6 is out of range; allowed: 0 to 5"));
    EXPECT_THAT(refusal(x, scores, 2, lengths_of({-1, 2})), HasSubstr("lengths: -1 is out of range; allowed: 0 to 5"));
  }
}

TEST_F(Pooling, SupportIsRefusedByDeviceDtypeLengthAndDivisibility) {
  PoolingVariant variant;
  variant.name = "narrow";
  variant.capabilities = {.devices = {"cpu"}, .dtypes = {"float32"}, .pooled_length_divides_length = true, .max_length = 64};
  const auto refusal = [&](const PoolingShape& shape, const std::string& device) {
    return message_of<Unsupported>([&] { check_pooling_support(variant, shape, device); });
  };
  const PoolingShape shape{.batch = 1, .length = 64, .width = 2, .pooled_length = 16};
  EXPECT_EQ(refusal(shape, "cpu"), "nothing was thrown");
  EXPECT_THAT(refusal(shape, "cuda"), testing::AllOf(HasSubstr("\"narrow\""), HasSubstr("device cuda")));
  auto other = shape;
  other.dtype = at::kBFloat16;
  EXPECT_THAT(refusal(other, "cpu"), HasSubstr("dtype bfloat16"));
  other = shape;
  other.length = 128;
  EXPECT_THAT(refusal(other, "cpu"), HasSubstr("length 128 > 64"));
  other = shape;
  other.pooled_length = 12;
  EXPECT_THAT(refusal(other, "cpu"), HasSubstr("pooled length 12 that does not divide 64"));
}

TEST_F(Pooling, PooledLengthsAreTheRowsThatAreLeft) {
  EXPECT_FALSE(pooled_lengths(std::nullopt, 4));
  EXPECT_TRUE(at::equal(*pooled_lengths(lengths_of({0, 3, 4, 9}), 4), lengths_of({0, 3, 4, 4})));
}

class HardTopk : public Pooling {
 protected:
  static std::shared_ptr<const PoolingOperator> with(const std::string& gradient, bool keep_order = true) {
    return pooling({{"name", "hard_topk"}, {"gradient", gradient}, {"keep_order", keep_order}});
  }
};

TEST_F(HardTopk, KeepsTheHighestRowsInSourceOrderOrByFallingScore) {
  const auto x = at::arange(5, at::kDouble).view({1, 5, 1});
  const auto scores = at::tensor({0.3, 0.9, 0.1, 0.5, 0.9}, at::kDouble).unsqueeze(0);
  const auto ordered = with("none").get()->forward(x, scores, 3, std::nullopt);
  EXPECT_TRUE(at::equal(ordered.positions, lengths_of({1, 3, 4}).unsqueeze(0)));
  const auto falling = with("none", false)->forward(x, scores, 3, std::nullopt);
  EXPECT_TRUE(at::equal(falling.positions, lengths_of({1, 4, 3}).unsqueeze(0)));
  const auto gated = with("gated", false)->forward(x, scores, 3, std::nullopt);
  EXPECT_TRUE(close(gated.values.flatten(), at::tensor({0.9, 3.6, 1.5}, at::kDouble), 1e-15, 1e-15));
}

TEST_F(HardTopk, StraightThroughHasBareRowsAndTheScoreGradientOfGated) {
  for (const bool keep_order : {true, false}) {
    const std::vector<at::Tensor> inputs = {at::randn({2, 9, 3}, at::kDouble), random_scores(2, 9)};
    const auto lengths = lengths_of({9, 2});
    const auto straight = with("straight_through", keep_order);
    const auto bare = with("none", keep_order);
    const auto gated = with("gated", keep_order);
    EXPECT_TRUE(close(straight->forward(inputs[0], inputs[1], 4, lengths).values,
                      bare->forward(inputs[0], inputs[1], 4, lengths).values, 1e-15, 1e-15));
    const auto cotangents = cotangents_for(pooled_by(straight, 4, lengths), inputs);
    const auto found = gradients_of(pooled_by(straight, 4, lengths), inputs, cotangents);
    EXPECT_TRUE(close(found[1], gradients_of(pooled_by(gated, 4, lengths), inputs, cotangents)[1], 1e-14, 1e-14));
    // Its rows come through with factor 1, since that is their value.
    EXPECT_TRUE(close(found[0], gradients_of(pooled_by(bare, 4, lengths), inputs, cotangents)[0], 1e-14, 1e-14));
  }
}

TEST_F(HardTopk, StraightThroughRowsAreBareWhateverTheScoreAndTheDtype) {
  const auto x = at::randn({1, 4, 3}).to(at::kBFloat16);
  const auto scores = at::tensor({0.3f, 1e4f, -7.7f, 2.5f}).unsqueeze(0);
  EXPECT_TRUE(at::equal(with("straight_through")->forward(x, scores, 4, std::nullopt).values, x));
}

TEST_F(HardTopk, WithoutGradientNothingReachesTheScoresAndKeptRowsPassTheirs) {
  const auto op = with("none");
  EXPECT_FALSE(op->passes_score_gradient());
  const std::vector<at::Tensor> inputs = {at::randn({2, 9, 3}, at::kDouble), random_scores(2, 9)};
  const auto function = pooled_by(op, 4, std::nullopt);
  const auto cotangents = cotangents_for(function, inputs);
  const auto found = gradients_of(function, inputs, cotangents);
  const auto positions = op->forward(inputs[0], inputs[1], 4, std::nullopt).positions;
  EXPECT_TRUE(at::equal(found[1], at::zeros_like(found[1])));
  EXPECT_TRUE(
      at::equal(found[0], at::zeros_like(inputs[0]).scatter(1, positions.unsqueeze(2).expand({2, 4, 3}), cotangents[0])));
}

TEST_F(HardTopk, InfiniteScoresGateByOneAndZero) {
  const auto x = at::tensor({3.0, 5.0, 7.0, 9.0}, at::kDouble).view({1, 4, 1});
  const auto scores = at::tensor({infinity, -infinity, nan, 0.5}, at::kDouble).unsqueeze(0);
  const auto pooled = with("gated")->forward(x, scores, 4, std::nullopt);
  EXPECT_TRUE(at::equal(pooled.values.flatten(), at::tensor({3.0, 0.0, 0.0, 4.5}, at::kDouble))) << pooled.values;
}

}  // namespace
}  // namespace transpool
