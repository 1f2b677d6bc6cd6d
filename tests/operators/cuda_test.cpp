// ctest-labels: gpu
#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"
#include "operators/pooling/tournament.h"
#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/cuda.h>

#include <limits>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

constexpr double infinity = std::numeric_limits<double>::infinity();

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
    torch::manual_seed(20101555);
  }
};

struct Sizes {
  std::int64_t batch, n, k;
};

at::Tensor on_cuda(const at::Tensor& tensor) { return tensor.to(at::kCUDA); }
Lengths on_cuda(const Lengths& lengths) { return lengths ? Lengths(lengths->to(at::kCUDA)) : lengths; }

/// Scores whose order no rounding decides: multiples of 1/n; or with ties, infinities and NaN among them.
at::Tensor draw_scores(const std::string& kind, std::int64_t batch, std::int64_t n) {
  const auto ranks = std::get<1>(std::get<1>(at::rand({batch, n}, at::kDouble).sort(1)).sort(1)).to(at::kDouble);
  const auto scores = (ranks + 0.5) / static_cast<double>(n);
  if (kind == "distinct") return scores;
  if (kind == "ties") return at::floor(scores * 4) / 4;
  const auto which = at::rand({batch, n});
  return scores.masked_fill(which < 0.1, infinity)
      .masked_fill(which > 0.8, -infinity)
      .masked_fill(which > 0.9, std::nan(""));
}

std::vector<Lengths> lengths_to_try(const Sizes& s) { return {std::nullopt, at::randint(0, s.n + 1, {s.batch}, at::kLong)}; }

/// Values, scores, and the gradients of both inputs.
std::vector<at::Tensor> pass(const PoolingOperator& op, const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const Lengths& lengths, const at::Tensor& cotangent, bool gradients) {
  const auto in = x.detach().requires_grad_(gradients);
  const auto s = scores.detach().requires_grad_(gradients);
  const auto pooled = op.forward(in, s, k, lengths);
  std::vector<at::Tensor> all = {pooled.values.detach(), pooled.scores.detach()};
  if (!gradients) return all;
  for (const auto& gradient : torch::autograd::grad({pooled.values}, {in, s}, {cotangent}, std::nullopt, false, true))
    all.push_back(gradient.defined() ? gradient : at::zeros({1}, x.options()));
  return all;
}

TEST_F(Cuda, EveryPoolingVariantGivesWhatItGivesOnTheCpu) {
  for (const auto& [name, variant] : pooling_registry().all()) {
    if (variant.capabilities.stochastic || !runs_by_name(variant)) continue;  // the devices draw other numbers
    for (const auto& value : option_combinations(variant, {}))
      for (const Sizes& s : {Sizes{3, 37, 5}, {2, 64, 16}, {1, 9, 9}, {2, 50, 1}})
        for (const auto& kind : {"distinct", "ties", "infinite"})
          for (const auto& lengths : lengths_to_try(s))
            for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
              SCOPED_TRACE(value.dump() + " n " + std::to_string(s.n) + " k " + std::to_string(s.k) + " " + kind + " " +
                           dtype_name(dtype) + (lengths ? " lengths" : ""));
              const auto selection = pooling_registry().select(value);
              const auto op = variant.make(selection.options);
              const auto x = at::randn({s.batch, s.n, 24}, at::kDouble).to(dtype);
              const auto scores = draw_scores(kind, s.batch, s.n).to(dtype == at::kDouble ? at::kDouble : at::kFloat);
              const auto cotangent = at::randn({s.batch, s.k, 24}, at::kDouble).to(dtype);
              const bool gradients = variant.capabilities.differentiable;
              const auto host = pass(*op, x, scores, s.k, lengths, cotangent, gradients);
              const auto device =
                  pass(*op, on_cuda(x), on_cuda(scores), s.k, on_cuda(lengths), on_cuda(cotangent), gradients);
              const double tolerance = dtype == at::kDouble ? 1e-8 : dtype == at::kFloat ? 1e-3 : 3e-2;
              for (std::size_t i = 0; i < host.size(); ++i) {
                const double largest = std::max(1.0, host[i].abs().nan_to_num(0, 0, 0).max().item<double>());
                EXPECT_TRUE(close(device[i].cpu(), host[i], tolerance, tolerance * largest)) << "result " << i;
              }
            }
  }
}

TEST_F(Cuda, EveryAttentionVariantGivesWhatItGivesOnTheCpu) {
  for (const auto& [name, variant] : attention_registry().all()) {
    if (variant.capabilities.stochastic || !runs_by_name(variant)) continue;  // the devices draw other numbers
    for (const auto& value : option_combinations(variant, {}))
      for (const std::int64_t n : {1, 16, 45})
        for (const bool masked : {false, true}) {
          SCOPED_TRACE(value.dump() + " n " + std::to_string(n));
          const auto selection = attention_registry().select(value);
          const auto op = variant.make(selection.options);
          const auto q = at::randn({2, 3, n, 8}), k = at::randn({2, 3, n, 8}), v = at::randn({2, 3, n, 8});
          const Lengths lengths = masked ? Lengths(at::randint(1, n + 1, {2}, at::kLong)) : std::nullopt;
          const auto host = op->forward(q, k, v, {.key_lengths = lengths});
          const auto device = op->forward(on_cuda(q), on_cuda(k), on_cuda(v), {.key_lengths = on_cuda(lengths)});
          EXPECT_TRUE(close(device.cpu(), host, 1e-3, 1e-3));
        }
  }
}

struct TournamentResult {
  Tournament tournament;
  at::Tensor gradient;
};

TournamentResult play(const at::Tensor& scores, std::int64_t k, const Lengths& lengths, const TournamentOptions& options,
                      const at::Tensor& weight_factor, const at::Tensor& score_factor) {
  const auto leaf = scores.detach().requires_grad_();
  const auto t = run_tournament(leaf, k, lengths, options);
  const auto loss = (t.weights * weight_factor).sum() + (t.scores.nan_to_num(0, 0, 0) * score_factor).sum();
  return {t, torch::autograd::grad({loss}, {leaf}).front()};
}

TEST_F(Cuda, TournamentKernelPlaysTheTournamentOfTheCpu) {
  for (const Sizes& s : {Sizes{3, 16, 4},
                         {1, 1, 1},
                         {2, 17, 17},
                         {2, 1000, 1},
                         {5, 1023, 100},
                         {2, 2048, 512},
                         {4, 4099, 512},
                         {2, 8192, 512},
                         {2, 16384, 1000},
                         {1, 30000, 7},
                         {1, 65536, 4096}})
    for (const auto& kind : {"distinct", "ties", "infinite"})
      for (const bool mirror : {true, false})
        for (const bool keep_order : {true, false})
          for (const auto& lengths : lengths_to_try(s)) {
            SCOPED_TRACE("n " + std::to_string(s.n) + " k " + std::to_string(s.k) + " " + kind + (mirror ? " mirror" : "") +
                         (keep_order ? " keep_order" : "") + (lengths ? " lengths" : ""));
            const TournamentOptions options{20, mirror, keep_order};
            const auto scores = draw_scores(kind, s.batch, s.n).to(at::kFloat);
            const std::int64_t fan_in = std::int64_t{1} << tournament_rounds(s.n, s.k);
            const auto weight_factor = at::randn({s.batch, s.k, fan_in}, at::kDouble);
            const auto score_factor = at::randn({s.batch, s.k}, at::kDouble);
            const auto host = play(scores, s.k, lengths, options, weight_factor, score_factor);
            const auto device =
                play(on_cuda(scores), s.k, on_cuda(lengths), options, on_cuda(weight_factor), on_cuda(score_factor));
            EXPECT_TRUE(at::equal(device.tournament.rows.cpu(), host.tournament.rows));
            EXPECT_TRUE(at::equal(device.tournament.positions.cpu(), host.tournament.positions));
            EXPECT_TRUE(close(device.tournament.weights.cpu(), host.tournament.weights, 1e-11, 1e-13));
            EXPECT_TRUE(close(device.tournament.scores.cpu(), host.tournament.scores, 1e-11, 1e-13));
            EXPECT_TRUE(close(device.gradient.cpu(), host.gradient, 1e-5, 1e-6));
            if (HasFailure()) return;
          }
}

TEST_F(Cuda, TournamentKernelIsBitIdenticalOverManyRuns) {
  const auto scores = at::rand({8, 8192}, at::TensorOptions().device(at::kCUDA));
  const auto weight_factor = at::randn({8, 512, 16}, scores.options().dtype(at::kDouble));
  const auto score_factor = at::randn({8, 512}, scores.options().dtype(at::kDouble));
  const auto first = play(scores, 512, std::nullopt, {}, weight_factor, score_factor);
  for (int run = 0; run < 100; ++run) {
    const auto again = play(scores, 512, std::nullopt, {}, weight_factor, score_factor);
    ASSERT_TRUE(at::equal(again.tournament.rows, first.tournament.rows));
    ASSERT_TRUE(at::equal(again.tournament.weights, first.tournament.weights));
    ASSERT_TRUE(at::equal(again.gradient, first.gradient));
  }
}

TEST_F(Cuda, GradientsOfSuccessiveHalvingMatchFiniteDifferences) {
  const auto op =
      pooling_registry().find("successive_halving").make(pooling_registry().select("successive_halving").options);
  for (const Sizes& s : {Sizes{2, 8, 2}, {2, 7, 3}}) {
    const auto function = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      const auto pooled = op->forward(on_cuda(in[0]), on_cuda(in[1]), s.k, std::nullopt);
      return {pooled.values.cpu(), pooled.scores.cpu()};
    };
    EXPECT_TRUE(gradients_match_differences(
        function, {at::randn({s.batch, s.n, 2}, at::kDouble), draw_scores("distinct", s.batch, s.n)}));
  }
}

}  // namespace
}  // namespace transpool
