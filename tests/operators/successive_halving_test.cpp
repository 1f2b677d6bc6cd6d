#include "operators/pooling/pooling.h"
#include "operators/pooling/tournament.h"
#include "operators/pooling/weighted_gather.h"

#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <cmath>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

at::Tensor lengths_of(const std::vector<std::int64_t>& lengths) { return at::tensor(lengths, at::kLong); }

at::Tensor row_of(const std::vector<double>& values) { return at::tensor(values, at::kDouble).unsqueeze(0); }

std::shared_ptr<const PoolingOperator> make(const Json& value) {
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

Json form(const std::string& name, const TournamentOptions& options) {
  return {{"name", name}, {"base", options.base}, {"mirror", options.mirror}, {"keep_order", options.keep_order}};
}

std::vector<TournamentOptions> all_options() {
  std::vector<TournamentOptions> all;
  for (const double base : {20.0, 2.0})
    for (const bool mirror : {true, false})
      for (const bool keep_order : {true, false}) all.push_back({base, mirror, keep_order});
  return all;
}

Differentiable as_function(const PoolingOperator& op, std::int64_t k, const Lengths& lengths) {
  return [&op, k, lengths](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    const auto pooled = op.forward(in[0], in[1], k, lengths);
    return {pooled.values, pooled.scores};
  };
}

double share(double a, double b, double base = 20) { return 1 / (1 + std::exp(std::pow(base, b) - std::pow(base, a))); }

class SuccessiveHalving : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(20101555); }
};

TEST_F(SuccessiveHalving, RoundsAreTheDoublingsFromKToN) {
  EXPECT_EQ(tournament_rounds(8, 8), 0);
  EXPECT_EQ(tournament_rounds(9, 8), 1);
  EXPECT_EQ(tournament_rounds(16, 8), 1);
  EXPECT_EQ(tournament_rounds(17, 8), 2);
  EXPECT_EQ(tournament_rounds(8192, 512), 4);
  EXPECT_EQ(tournament_rounds(5, 1), 3);
}

TEST_F(SuccessiveHalving, WeightsOfEachOutputSumToOneAndEachSourceRowIsUsedOnce) {
  for (const auto& options : all_options())
    for (const auto& [n, k] : std::vector<std::pair<std::int64_t, std::int64_t>>{{16, 4}, {17, 4}, {31, 5}, {8, 8}, {9, 1}})
      for (const auto& lengths : {Lengths(), Lengths(lengths_of({n, n - 1, k - 1, 0}))}) {
        const auto tournament = run_tournament(at::rand({4, n}), k, lengths, options);
        EXPECT_EQ(tournament.weights.scalar_type(), at::kDouble);
        EXPECT_TRUE(((tournament.weights >= 0) & (tournament.weights <= 1)).all().item<bool>());
        EXPECT_TRUE((tournament.weights.masked_select(tournament.rows < 0) == 0).all().item<bool>());
        for (std::int64_t b = 0; b < 4; ++b) {
          const auto length = lengths ? (*lengths)[b].item<std::int64_t>() : n;
          const auto rows = tournament.rows[b].flatten();
          const auto named = std::get<0>(rows.masked_select(rows >= 0).sort(0));
          EXPECT_TRUE(at::equal(named, at::arange(length))) << named;
          const auto sums = tournament.weights[b].sum(1);
          const auto left = std::min(k, length);
          EXPECT_TRUE(close(sums, (at::arange(k) < left).to(at::kDouble), 1e-14, 1e-14)) << sums;
          // The leader of each output is one of its rows.
          for (std::int64_t j = 0; j < left; ++j) {
            const auto at_leader = tournament.rows[b][j] == tournament.positions[b][j];
            EXPECT_EQ(at_leader.sum().item<std::int64_t>(), 1);
          }
        }
      }
}

TEST_F(SuccessiveHalving, SmallExampleByHand) {
  const auto x = at::tensor({1.0, 2.0, 4.0, 8.0}, at::kDouble).view({1, 4, 1});
  const std::vector<double> s = {0.1, 0.9, 0.5, 0.3};  // by rank: rows 1, 2, 3, 0
  for (const std::string name : {"successive_halving", "successive_halving_rounds"}) {
    SCOPED_TRACE(name);
    const auto mirrored = make(form(name, {20, true, true}))->forward(x, row_of(s), 2, std::nullopt);
    const double w10 = share(s[1], s[0]), w23 = share(s[2], s[3]);
    EXPECT_NEAR(w23, 0.8824, 1e-4);
    EXPECT_TRUE(at::equal(mirrored.positions, lengths_of({1, 2}).unsqueeze(0)));
    EXPECT_NEAR(mirrored.values[0][0][0].item<double>(), w10 * 2 + (1 - w10) * 1, 1e-12);
    EXPECT_NEAR(mirrored.values[0][1][0].item<double>(), w23 * 4 + (1 - w23) * 8, 1e-12);
    EXPECT_NEAR(mirrored.scores[0][1].item<double>(), w23 * s[2] + (1 - w23) * s[3], 1e-12);

    const auto halves = make(form(name, {20, false, true}))->forward(x, row_of(s), 2, std::nullopt);
    const double w13 = share(s[1], s[3]), w20 = share(s[2], s[0]);
    EXPECT_NEAR(halves.values[0][0][0].item<double>(), w13 * 2 + (1 - w13) * 8, 1e-12);
    EXPECT_NEAR(halves.values[0][1][0].item<double>(), w20 * 4 + (1 - w20) * 1, 1e-12);

    const auto one = make(form(name, {20, true, true}))->forward(x, row_of(s), 1, std::nullopt);
    const double a = w10 * s[1] + (1 - w10) * s[0], b = w23 * s[2] + (1 - w23) * s[3], w = share(a, b);
    EXPECT_EQ(one.positions.item<std::int64_t>(), 1);
    EXPECT_NEAR(one.scores.item<double>(), w * a + (1 - w) * b, 1e-12);
    EXPECT_NEAR(one.values.item<double>(), w * (w10 * 2 + (1 - w10) * 1) + (1 - w) * (w23 * 4 + (1 - w23) * 8), 1e-12);
  }
}

TEST_F(SuccessiveHalving, WinnersByFallingScoreWhereOrderIsNotKept) {
  const auto scores = row_of({0.2, 0.4, 0.9, 0.6});
  EXPECT_TRUE(at::equal(run_tournament(scores, 2, {}, {20, true, true}).positions, lengths_of({2, 3}).unsqueeze(0)));
  const auto other = row_of({0.2, 0.6, 0.4, 0.9});
  EXPECT_TRUE(at::equal(run_tournament(other, 2, {}, {20, true, true}).positions, lengths_of({1, 3}).unsqueeze(0)));
  EXPECT_TRUE(at::equal(run_tournament(other, 2, {}, {20, true, false}).positions, lengths_of({3, 1}).unsqueeze(0)));
}

TEST_F(SuccessiveHalving, SharpBaseConvergesToHardTopk) {
  const auto hard = make({{"name", "hard_topk"}, {"gradient", "none"}});
  for (const auto& [n, k] : std::vector<std::pair<std::int64_t, std::int64_t>>{{16, 4}, {13, 3}, {16, 8}, {9, 1}}) {
    const auto x = at::randn({3, n, 5}, at::kDouble);
    std::vector<at::Tensor> rows;
    for (int b = 0; b < 3; ++b) rows.push_back((at::randperm(n).to(at::kDouble) + 1) / 16);
    const auto scores = at::stack(rows);
    const auto expected = hard->forward(x, scores, k, std::nullopt);
    double previous = std::numeric_limits<double>::infinity();
    for (const double base : {20.0, 1e3, 1e6}) {
      const auto pooled = make(form("successive_halving", {base, true, true}))->forward(x, scores, k, std::nullopt);
      const double distance = (pooled.values - expected.values).abs().max().item<double>();
      EXPECT_LE(distance, previous) << "base " << base;
      previous = distance;
      if (base == 1e6) {
        EXPECT_TRUE(at::equal(pooled.positions, expected.positions));
        EXPECT_LT(distance, 1e-6);
      }
    }
  }
}

TEST_F(SuccessiveHalving, BothFormsHaveTheSameGradient) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto equal_scores = at::full({3, 16}, 0.25, at::kDouble);
  auto wild = at::rand({3, 16}, at::kDouble);
  wild.select(1, 3).fill_(infinity);
  wild.select(1, 5).fill_(infinity);
  wild.select(1, 7).fill_(-infinity);
  wild.select(1, 11).fill_(std::nan(""));
  for (const auto& options : all_options()) {
    const auto fused = make(form("successive_halving", options));
    const auto rounds = make(form("successive_halving_rounds", options));
    for (const auto& scores : {at::rand({3, 16}, at::kDouble), equal_scores, wild})
      for (const std::int64_t k : {1, 4, 5, 16})
        for (const auto& lengths : {Lengths(), Lengths(lengths_of({16, 7, 0}))}) {
          const std::vector<at::Tensor> inputs = {at::randn({3, 16, 4}, at::kDouble), scores};
          const auto cotangents = cotangents_for(as_function(*fused, k, lengths), inputs);
          const auto a = gradients_of(as_function(*fused, k, lengths), inputs, cotangents);
          const auto b = gradients_of(as_function(*rounds, k, lengths), inputs, cotangents);
          EXPECT_TRUE(close(a[0], b[0], 1e-9, 1e-10)) << "x, k " << k;
          EXPECT_TRUE(close(a[1], b[1], 1e-9, 1e-10)) << "scores, k " << k << a[1] << b[1];
        }
  }
}

TEST_F(SuccessiveHalving, RowsWithoutAScoreMayHoldAnything) {
  for (const std::int64_t k : {1, 5}) {
    auto scores = at::rand({2, 37}, at::kDouble);
    const auto none = at::rand({2, 37}) < 0.3;
    scores.masked_fill_(none, std::nan(""));
    const auto fused = make(form("successive_halving", {}));
    const auto function = as_function(*fused, k, std::nullopt);
    const auto x = at::randn({2, 37, 4}, at::kDouble);
    const auto cotangents = cotangents_for(function, {x, scores});
    const auto expected = gradients_of(function, {x.masked_fill(none.unsqueeze(2), 0), scores}, cotangents);
    const auto found = gradients_of(function, {x.masked_fill(none.unsqueeze(2), std::nan("")), scores}, cotangents);
    EXPECT_TRUE(found[0].isfinite().all().item<bool>() && at::equal(found[0], expected[0])) << k;
    EXPECT_TRUE(found[1].isfinite().all().item<bool>() && at::equal(found[1], expected[1])) << k;
  }
}

TEST_F(SuccessiveHalving, GradientReachesTheLosersWeightsAndScores) {
  const std::vector<at::Tensor> inputs = {at::randn({1, 8, 3}, at::kDouble), at::rand({1, 8}, at::kDouble)};
  const auto fused = make(form("successive_halving", {2, true, true}));
  const auto function = as_function(*fused, 2, std::nullopt);
  const auto gradients = gradients_of(function, inputs, cotangents_for(function, inputs));
  EXPECT_TRUE((gradients[0] != 0).all().item<bool>());
  EXPECT_TRUE((gradients[1] != 0).all().item<bool>());
}

TEST_F(SuccessiveHalving, WeightedGatherEqualsAMatrixProductAndPassesItsGradients) {
  const auto x = at::randn({2, 6, 3}, at::kDouble);
  const auto rows = at::tensor({0, 5, 2, -1, 1, 3, 4, -1}, at::kLong).view({2, 2, 2});
  const auto weights = at::rand({2, 2, 2}, at::kDouble).masked_fill(rows < 0, 0);
  const Differentiable gather = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    return {weighted_gather(in[0], rows, in[1])};
  };
  const auto one_hot = (rows.unsqueeze(3) == at::arange(6)).to(at::kDouble);
  const auto matrix = (one_hot * weights.unsqueeze(3)).sum(2);
  EXPECT_TRUE(close(gather({x, weights})[0], at::matmul(matrix, x), 1e-14, 1e-14));
  const auto cotangents = cotangents_for(gather, {x, weights});
  const auto found = gradients_of(gather, {x, weights}, cotangents);
  EXPECT_TRUE(close(found[0], at::matmul(matrix.transpose(1, 2), cotangents[0]), 1e-14, 1e-14));
  EXPECT_TRUE(close(found[1], at::einsum("bkcn,bnd,bkd->bkc", {one_hot, x, cotangents[0]}), 1e-13, 1e-13));
}

}  // namespace
}  // namespace transpool
