// ctest-labels: gpu
#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"
#include "runners/measure/cuda_graph.h"
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

/// What rounding leaves of a score's gradient whose terms cancel: they are as large as the operator is sharp.
double rounded_gradient(const Options& options, at::ScalarType dtype, std::int64_t width) {
  const double sharpness = options.has("alpha") ? options.real("alpha") : 1;
  return sharpness * static_cast<double>(width) * (dtype == at::kDouble ? 0x1p-53 : 0x1p-24);
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
                const double rounding = i == 3 ? rounded_gradient(selection.options, dtype, x.size(2)) : 0;
                EXPECT_TRUE(close(device[i].cpu(), host[i], tolerance, tolerance * largest + rounding)) << "result " << i;
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

struct Halved {
  Pooled pooled;
  at::Tensor x_gradient, score_gradient;
};

Halved halve(const PoolingOperator& op, const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
             const Lengths& lengths, const at::Tensor& value_factor, const at::Tensor& score_factor) {
  const auto in = x.detach().requires_grad_(), s = scores.detach().requires_grad_();
  const auto pooled = op.forward(in, s, k, lengths);
  const auto loss = (pooled.values * value_factor).sum() + (pooled.scores.nan_to_num(0, 0, 0) * score_factor).sum();
  const auto gradients = torch::autograd::grad({loss}, {in, s});
  return {pooled, gradients[0], gradients[1]};
}

std::shared_ptr<const PoolingOperator> halving(const Json& options = Json::object()) {
  Json value = {{"name", "successive_halving"}};
  value.update(options);
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

struct HalvingCase {
  Sizes sizes;
  std::string kind = "distinct";
  bool mirror = true, keep_order = true;
  Lengths lengths = std::nullopt;
  at::ScalarType dtype = at::kFloat;
};

/// Forward and backward on the GPU against the CPU.
void expect_agreement(const HalvingCase& c) {
  const auto& s = c.sizes;
  SCOPED_TRACE("n " + std::to_string(s.n) + " k " + std::to_string(s.k) + " " + c.kind + (c.mirror ? " mirror" : "") +
               (c.keep_order ? " keep_order " : " ") + dtype_name(c.dtype) + (c.lengths ? " lengths" : ""));
  const auto op = halving({{"mirror", c.mirror}, {"keep_order", c.keep_order}});
  const auto score_dtype = c.dtype == at::kDouble ? at::kDouble : at::kFloat;
  const auto scores = draw_scores(c.kind, s.batch, s.n).to(score_dtype);
  const auto x = at::randn({s.batch, s.n, 12}).to(c.dtype);
  const auto value_factor = at::randn({s.batch, s.k, 12}).to(c.dtype);
  const auto score_factor = at::randn({s.batch, s.k}).to(score_dtype);
  const auto host = halve(*op, x, scores, s.k, c.lengths, value_factor, score_factor);
  const auto device =
      halve(*op, on_cuda(x), on_cuda(scores), s.k, on_cuda(c.lengths), on_cuda(value_factor), on_cuda(score_factor));
  const double coarse = c.dtype == at::kBFloat16 ? 1e3 : 1;
  EXPECT_TRUE(at::equal(device.pooled.positions.cpu(), host.pooled.positions));
  EXPECT_TRUE(close(device.pooled.scores.cpu(), host.pooled.scores, 1e-6, 1e-7));
  EXPECT_TRUE(close(device.pooled.values.cpu(), host.pooled.values, 1e-5 * coarse, 1e-5 * coarse));
  EXPECT_TRUE(close(device.x_gradient.cpu(), host.x_gradient, 1e-5 * coarse, 1e-6 * coarse));
  EXPECT_TRUE(close(device.score_gradient.cpu(), host.score_gradient, 1e-4 * coarse, 1e-4 * coarse));
}

TEST_F(Cuda, SuccessiveHalvingKernelsPlayTheTournamentOfTheCpu) {
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
                         {1, 65536, 4096},
                         {1, 70000, 4096}})
    for (const auto& kind : {"distinct", "ties", "infinite"})
      for (const bool mirror : {true, false})
        for (const bool keep_order : {true, false})
          for (const auto& lengths : lengths_to_try(s)) {
            expect_agreement({s, kind, mirror, keep_order, lengths});
            if (HasFailure()) return;
          }
}

TEST_F(Cuda, SuccessiveHalvingKernelsPlayTournamentsOfRowsTooLongForACluster) {
  const auto none_one_all = at::tensor({0, 1, 131072}, at::kLong);
  const std::vector<HalvingCase> cases = {
      {{2, 65537, 1}},
      {{1, 65537, 1}, "infinite", false, false, std::nullopt, at::kDouble},
      {{2, 100000, 700}, "distinct", true, false, at::tensor({99999, 70000}, at::kLong), at::kBFloat16},
      {{2, 100000, 700}, "ties", false, true, std::nullopt, at::kDouble},
      {{2, 100000, 700}, "infinite", true, true, at::tensor({100000, 701}, at::kLong)},
      {{3, 131072, 4096}, "distinct", true, true, none_one_all},
      {{3, 131072, 4096}, "ties", true, false, none_one_all, at::kBFloat16},
      {{3, 131072, 4096}, "infinite", false, true, none_one_all, at::kDouble},
      {{3, 131072, 4096}, "distinct", false, false},
      {{1, 1 << 18, 1 << 18}, "infinite", true, true, at::tensor({1 << 17}, at::kLong)},
      {{1, 1 << 18, 1 << 18}, "distinct", true, false},
      {{1, 1 << 20, 512}},
      {{1, 1 << 20, 512}, "ties", false, false, std::nullopt, at::kBFloat16},
      {{1, (1 << 20) + 1, 4096}},  // composed: no form of the kernels takes it
  };
  for (const auto& c : cases) expect_agreement(c);
}

TEST_F(Cuda, RowsOfNegligibleWeightNeitherCountNorAreRead) {
  for (const auto dtype : {at::kFloat, at::kBFloat16})
    for (const auto& [skip, epsilon] : std::vector<std::pair<std::string, double>>{{"auto", 0.0}, {"epsilon", 0.05}}) {
      SCOPED_TRACE(skip + " " + dtype_name(dtype));
      const auto all = halving(), some = halving({{"skip", skip}, {"epsilon", epsilon}});
      const double bound = skip == "epsilon" ? epsilon : dtype == at::kFloat ? 0x1p-25 : 0x1p-9;
      // Adversarial: a fan-in of 64 rows of about the same negligible weight, and x at its bound with one sign.
      for (const auto& scores :
           {at::rand({2, 4096}), at::linspace(0, 1, 8192).view({2, 4096}), at::randn({2, 4096}) * 0.01}) {
        const auto x = at::ones({2, 4096, 16}).to(dtype);
        const auto factor = at::randn({2, 64, 16}).to(dtype), score_factor = at::zeros({2, 64});
        const auto host = halve(*some, x, scores, 64, {}, factor, score_factor);
        const auto device = halve(*some, on_cuda(x), on_cuda(scores), 64, {}, on_cuda(factor), on_cuda(score_factor));
        const auto whole = halve(*all, on_cuda(x), on_cuda(scores), 64, {}, on_cuda(factor), on_cuda(score_factor));
        const auto error = (device.pooled.values - whole.pooled.values).to(at::kDouble).abs().max().item<double>();
        EXPECT_LE(error, bound + (dtype == at::kFloat ? 1e-6 : 0x1p-8));
        EXPECT_TRUE(close(device.pooled.values.cpu(), host.pooled.values, 1e-5, dtype == at::kFloat ? 1e-5 : 1e-2));
        EXPECT_TRUE(close(device.x_gradient.cpu(), host.x_gradient, 1e-2, 1e-2));
        EXPECT_TRUE(at::equal(device.pooled.positions, whole.pooled.positions));
      }
      // Rows that are left out may hold anything: where one row of a pair has all the weight, NaN in the other stays there.
      auto x = at::zeros({1, 64, 4}, at::TensorOptions().dtype(dtype).device(at::kCUDA));
      x.narrow(1, 32, 32).fill_(std::nan(""));
      auto scores = at::ones({1, 64}, x.options().dtype(at::kFloat)) * 3;
      scores.narrow(1, 32, 32).fill_(0);
      EXPECT_TRUE(finite(some->forward(x, scores, 32, {}).values));
    }
}

void expect_equal(const Halved& again, const Halved& first) {
  EXPECT_TRUE(at::equal(again.pooled.values, first.pooled.values));
  EXPECT_TRUE(at::equal(again.pooled.scores, first.pooled.scores));
  EXPECT_TRUE(at::equal(again.pooled.positions, first.pooled.positions));
  EXPECT_TRUE(at::equal(again.x_gradient, first.x_gradient));
  EXPECT_TRUE(at::equal(again.score_gradient, first.score_gradient));
}

TEST_F(Cuda, SuccessiveHalvingIsBitIdenticalOverManyRunsAndStreams) {
  const auto options = at::TensorOptions().device(at::kCUDA);
  const auto op = halving();
  const c10::impl::VirtualGuardImpl devices(at::kCUDA);
  for (const Sizes& s : {Sizes{8, 8192, 512}, {3, 131072, 4096}}) {
    const auto x = at::randn({s.batch, s.n, 64}, options), scores = at::rand({s.batch, s.n}, options);
    const auto value_factor = at::randn({s.batch, s.k, 64}, options), score_factor = at::randn({s.batch, s.k}, options);
    const auto first = halve(*op, x, scores, s.k, std::nullopt, value_factor, score_factor);
    const auto home = devices.getStream(x.device());
    for (int run = 0; run < 100; ++run) {
      if (run % 10 == 9) {
        devices.synchronizeStream(devices.getStream(x.device()));
        devices.exchangeStream(devices.getStreamFromGlobalPool(x.device()));
      }
      expect_equal(halve(*op, x, scores, s.k, std::nullopt, value_factor, score_factor), first);
      if (HasFailure()) break;
    }
    devices.synchronizeStream(devices.getStream(x.device()));
    devices.exchangeStream(home);
  }
}

TEST_F(Cuda, AGraphReplaysSuccessiveHalvingOfLongRows) {
  const auto options = at::TensorOptions().device(at::kCUDA);
  const auto op = halving();
  struct Rows {
    Sizes sizes;
    std::int64_t width;
  };
  for (const auto& rows : {Rows{{2, 100000, 700}, 16}, {{20, 20000, 1250}, 512}}) {
    const auto& s = rows.sizes;
    const auto width = rows.width;
    const auto x = at::randn({s.batch, s.n, width}, options), scores = at::rand({s.batch, s.n}, options);
    const auto value_factor = at::randn({s.batch, s.k, width}, options), score_factor = at::randn({s.batch, s.k}, options);
    const Lengths lengths = at::randint(s.n / 2, s.n + 1, {s.batch}, options.dtype(at::kLong));
    Halved caught;
    const auto replay =
        captured([&] { caught = halve(*op, x, scores, s.k, lengths, value_factor, score_factor); }, x.device());
    const auto in_graph = caught;
    x.copy_(at::randn_like(x));
    scores.copy_(at::rand_like(scores));
    replay();
    torch::cuda::synchronize();
    expect_equal(in_graph, halve(*op, x, scores, s.k, lengths, value_factor, score_factor));
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
