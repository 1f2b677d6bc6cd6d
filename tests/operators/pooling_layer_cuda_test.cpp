// ctest-labels: gpu
#include "models/pooling_layer.h"
#include "runners/measure/cuda_graph.h"
#include "runners/measure/level.h"
#include "tests/operators/variants.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/cuda.h>

#include <limits>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

class PoolingLayerCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
    torch::manual_seed(20101555);
  }
};

struct Sizes {
  std::int64_t batch, n, k, width;
};

const Json plain = "successive_halving";

/// The layer on the GPU in that dtype.
PoolingLayer layer_of(std::int64_t width, at::ScalarType dtype, bool fuse = true, const Json& pooling = plain) {
  PoolingLayer layer(width, "linear", pooling, fuse);
  layer->to(at::Device(at::kCUDA), dtype);
  return layer;
}

void copy_parameters(PoolingLayer& to, PoolingLayer& from) {
  const at::NoGradGuard constant;
  const auto parameters = from->named_parameters();
  for (auto& parameter : to->named_parameters()) parameter.value().copy_(parameters[parameter.key()]);
}

bool is_fused(const Sizes& s, at::ScalarType dtype, at::ScalarType precision) {
  return find_fused_pooling("linear", "successive_halving")
             ->backend(at::Device(at::kCUDA), {s.batch, s.n, s.width, s.k, dtype}, precision) == "cuda";
}

at::Tensor draw_rows(const Sizes& s, at::ScalarType dtype, const std::string& kind = "plain") {
  auto x = at::randn({s.batch, s.n, s.width}, at::kDouble);
  if (kind == "ties")  // every row twice or more
    x = x.index_select(1, at::randint(0, (s.n + 1) / 2, {s.n}, at::kLong));
  if (kind == "nan") x.masked_fill_(at::rand({s.batch, s.n, 1}) < 0.3, std::nan(""));
  return x.to(at::kCUDA).to(dtype);
}

struct Results {
  at::Tensor values, slot_scores, positions, scores;
  at::Tensor x_gradient, weight_gradient, bias_gradient;

  std::vector<at::Tensor> all() const {
    return {values, slot_scores, positions, scores, x_gradient, weight_gradient, bias_gradient};
  }
};

/// Gradients of <values, cotangent> + <scores of the outputs, score_cotangent>.
Results pass(PoolingLayer& layer, const at::Tensor& rows, std::int64_t k, const Lengths& lengths,
             const at::Tensor& cotangent, const at::Tensor& score_cotangent) {
  const auto x = rows.detach().requires_grad_();
  const auto found = layer->forward({x, lengths}, k);
  const auto parameters = layer->parameters();
  const auto gradients = torch::autograd::grad({found.pooled.values, found.pooled.scores}, {x, parameters[0], parameters[1]},
                                               {cotangent, score_cotangent});
  return {found.pooled.values.detach(),
          found.pooled.scores.detach(),
          found.pooled.positions,
          found.scores.detach(),
          gradients[0],
          gradients[1],
          gradients[2]};
}

/// The same in float64 on the CPU by the scorer and the operator's composed form, pooled by the scores of `found`. Rows
/// whose score is NaN, and padded ones that hold NaN, are zero rows to both, so that nothing reaches a gradient from them.
Results reference(PoolingLayer& layer, const Json& pooling, const at::Tensor& rows, std::int64_t k, const Lengths& lengths,
                  const at::Tensor& cotangent, const at::Tensor& score_cotangent, const Results& found) {
  PoolingLayer exact(rows.size(2), "linear", pooling);
  exact->to(at::kDouble);
  copy_parameters(exact, layer);
  const auto x = rows.detach().cpu().to(at::kDouble).requires_grad_();
  const auto pooled_by = found.scores.cpu().to(at::kDouble);
  const auto no_number = pooled_by.isnan().logical_or(x.detach().isnan().any(2));
  const auto own = exact->scorer().forward({x.masked_fill(no_number.unsqueeze(2), 0)}).to(at::kDouble);
  const auto pinned = (own + (pooled_by - own).detach()).masked_fill(no_number, std::nan(""));
  const auto here = lengths ? Lengths(lengths->cpu()) : lengths;
  const auto pooled = exact->pooling().forward(x.masked_fill(no_number.unsqueeze(2), 0), pinned, k, here);
  const auto parameters = exact->parameters();
  const auto gradients = torch::autograd::grad({pooled.values, pooled.scores}, {x, parameters[0], parameters[1]},
                                               {cotangent.cpu().to(at::kDouble), score_cotangent.cpu().to(at::kDouble)});
  return {pooled.values.detach(), pooled.scores.detach(), pooled.positions, own.detach(),
          gradients[0],           gradients[1],           gradients[2]};
}

void expect_near(const at::Tensor& found, const at::Tensor& expected, double tolerance, const std::string& what) {
  const auto ours = found.cpu().to(at::kDouble), theirs = expected.cpu().to(at::kDouble);
  ASSERT_EQ(ours.sizes(), theirs.sizes()) << what;
  const double scale = std::max(1e-6, theirs.norm().item<double>());
  EXPECT_LE((ours - theirs).norm().item<double>() / scale, tolerance) << what;
}

double tolerance_of(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-6 : dtype == at::kFloat ? 1e-4 : dtype == at::kHalf ? 3e-3 : 1e-2;
}

void expect_agreement(const Sizes& s, at::ScalarType dtype, const std::string& kind, const Lengths& lengths,
                      const Json& pooling, const Json& exact_pooling) {
  SCOPED_TRACE(std::to_string(s.n) + " -> " + std::to_string(s.k) + ", width " + std::to_string(s.width) + ", " + kind +
               ", " + dtype_name(dtype) + (lengths ? ", lengths " : " ") + pooling.dump());
  ASSERT_TRUE(is_fused(s, dtype, dtype));
  auto layer = layer_of(s.width, dtype, true, pooling);
  const auto x = draw_rows(s, dtype, kind);
  const auto cotangent = at::randn({s.batch, s.k, s.width}, x.options());
  const auto score_cotangent = at::randn({s.batch, s.k}, x.options().dtype(at::kFloat));
  const auto found = pass(layer, x, s.k, lengths, cotangent, score_cotangent);
  const auto expected = reference(layer, exact_pooling, x, s.k, lengths, cotangent, score_cotangent, found);
  EXPECT_TRUE(at::equal(found.positions.cpu(), expected.positions));
  const double tolerance = tolerance_of(dtype);
  auto valid = lengths ? valid_positions(lengths->cpu(), s.n) : at::ones({s.batch, s.n}, at::kBool);
  valid = valid.logical_and(found.scores.cpu().isnan().logical_not());
  expect_near(found.scores.cpu().masked_fill(valid.logical_not(), 0), expected.scores.masked_fill(valid.logical_not(), 0),
              tolerance, "scores");
  expect_near(found.values, expected.values, tolerance, "values");
  expect_near(found.slot_scores, expected.slot_scores, tolerance, "scores of the outputs");
  expect_near(found.x_gradient, expected.x_gradient, tolerance, "gradient of x");
  expect_near(found.weight_gradient, expected.weight_gradient, tolerance, "gradient of the weight");
  expect_near(at::cat({found.weight_gradient.flatten(), found.bias_gradient}),
              at::cat({expected.weight_gradient.flatten(), expected.bias_gradient}), tolerance, "gradient of the bias");
}

const std::vector<Sizes> all_sizes = {{3, 37, 5, 24},    {2, 64, 16, 65},    {1, 9, 9, 8},       {2, 50, 1, 33},
                                      {2, 999, 70, 512}, {1, 2048, 16, 128}, {1, 600, 40, 4100}, {2, 1024, 1, 16}};

TEST_F(PoolingLayerCuda, AgreesWithScorerAndOperatorInTurn) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
    for (const auto& s : all_sizes)
      for (const auto* kind : {"plain", "ties"})
        for (const bool padded : {false, true}) {
          const auto lengths = padded ? Lengths(at::randint(0, s.n + 1, {s.batch}, at::kLong).to(at::kCUDA)) : Lengths();
          expect_agreement(s, dtype, kind, lengths, plain, plain);
        }
}

TEST_F(PoolingLayerCuda, AgreesWhereOptionsOfTheOperatorAreNotItsDefaults) {
  const Json skipping = {{"name", "successive_halving"}, {"skip", "epsilon"}, {"epsilon", 0x1p-9}};
  const Json other = {{"name", "successive_halving"}, {"base", 5}, {"mirror", false}, {"keep_order", false}};
  for (const Sizes& s : {Sizes{2, 999, 70, 512}, {2, 500, 8, 33}})
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      for (const auto& pooling : {skipping, other}) expect_agreement(s, dtype, "plain", std::nullopt, pooling, pooling);
}

TEST_F(PoolingLayerCuda, AgreesWhereRowsAreTooLongForACluster) {
  const auto lengths = at::tensor({100000, 30000}, at::kLong).to(at::kCUDA);
  expect_agreement({2, 100000, 700, 16}, at::kFloat, "plain", lengths, plain, plain);
  expect_agreement({2, 131072, 4096, 16}, at::kBFloat16, "ties", std::nullopt, plain, plain);
}

TEST_F(PoolingLayerCuda, RowsWithoutAScoreAddNothingToTheScorersGradients) {
  for (const auto dtype : {at::kFloat, at::kBFloat16})
    for (const Sizes& s : {Sizes{3, 37, 5, 24}, {2, 999, 70, 512}, {2, 50, 1, 33}})
      for (const bool padded : {false, true}) {
        const auto lengths = padded ? Lengths(at::randint(1, s.n + 1, {s.batch}, at::kLong).to(at::kCUDA)) : Lengths();
        auto layer = layer_of(s.width, dtype);
        const auto x = draw_rows(s, dtype, "nan");
        const auto cotangent = at::randn({s.batch, s.k, s.width}, x.options());
        const auto score_cotangent = at::zeros({s.batch, s.k}, x.options().dtype(at::kFloat));
        const auto found = pass(layer, x, s.k, lengths, cotangent, score_cotangent);
        EXPECT_TRUE(found.weight_gradient.isfinite().all().item<bool>());
        EXPECT_TRUE(found.bias_gradient.isfinite().all().item<bool>());
        EXPECT_TRUE(found.x_gradient.isfinite().all().item<bool>());
        const auto expected = reference(layer, plain, x, s.k, lengths, cotangent, score_cotangent, found);
        expect_near(found.weight_gradient, expected.weight_gradient, tolerance_of(dtype), "gradient of the weight");
        expect_near(found.x_gradient, expected.x_gradient, tolerance_of(dtype), "gradient of x");
      }
}

TEST_F(PoolingLayerCuda, PaddedRowsNeverLeakWhateverTheyHold) {
  const Sizes s{2, 700, 60, 512};
  auto layer = layer_of(s.width, at::kBFloat16);
  const auto lengths = at::tensor({700, 123}, at::kLong).to(at::kCUDA);
  const auto x = draw_rows(s, at::kBFloat16);
  auto poisoned = x.clone();
  poisoned[1].narrow(0, 123, s.n - 123).fill_(std::numeric_limits<double>::infinity());
  const auto cotangent = at::randn({s.batch, s.k, s.width}, x.options());
  const auto score_cotangent = at::randn({s.batch, s.k}, x.options().dtype(at::kFloat));
  const auto expected = pass(layer, x, s.k, lengths, cotangent, score_cotangent).all();
  const auto found = pass(layer, poisoned, s.k, lengths, cotangent, score_cotangent).all();
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::equal(found[i], expected[i])) << "result " << i;
}

/// Of two tensors of scores: how many of these differ by no more than a sigmoid's last digits.
double share_alike(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs() <= 1e-6).to(at::kFloat).mean().item<double>();
}

/// What the linear scorer gives where its logits are exact and rounded once, to `precision`.
at::Tensor scores_of_exact_logits(PoolingLayer& layer, const at::Tensor& x, at::ScalarType precision) {
  const auto exact = [&](const at::Tensor& t) { return t.detach().cpu().to(precision).to(at::kDouble); };
  const auto parameters = layer->parameters();
  const auto logits = at::linear(exact(x), exact(parameters[0]), exact(parameters[1])).squeeze(2);
  return (logits.to(precision).to(at::kFloat).sigmoid() + 1e-5).to(at::kCUDA);
}

TEST_F(PoolingLayerCuda, LogitsAreExactButForOneRounding) {
  const Sizes s{2, 4000, 100, 512};
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    auto layer = layer_of(s.width, dtype);
    const auto x = draw_rows(s, dtype);
    const at::NoGradGuard constant;
    const auto fused = layer->forward({x}, s.k).scores;
    // Sums end, here and there, on the other side of where rounding turns.
    EXPECT_GE(share_alike(fused, scores_of_exact_logits(layer, x, dtype)), 0.95) << dtype_name(dtype);
    // The product that the scorer calls may round its partial sums too.
    const auto in_turn = layer->scorer().forward({x});
    EXPECT_LE((fused - in_turn).abs().max().item<double>(), dtype == at::kHalf ? 1e-3 : 8e-3) << dtype_name(dtype);
  }
}

TEST_F(PoolingLayerCuda, UnderAutocastRowsOfFloatAreScoredInTheLesserType) {
  const Sizes s{2, 999, 70, 512};
  auto layer = layer_of(s.width, at::kFloat), in_turn = layer_of(s.width, at::kFloat, false);
  copy_parameters(in_turn, layer);
  const auto x = draw_rows(s, at::kFloat).requires_grad_();
  at::autocast::set_autocast_enabled(at::kCUDA, true);
  at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
  const auto fused = layer->forward({x}, s.k), composed = in_turn->forward({x}, s.k);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCUDA, false);
  ASSERT_TRUE(is_fused(s, at::kFloat, at::kBFloat16));
  EXPECT_GE(share_alike(fused.scores, scores_of_exact_logits(layer, x, at::kBFloat16)), 0.95);
  EXPECT_LE((fused.scores - composed.scores).abs().max().item<double>(), 8e-3);
  EXPECT_EQ(fused.pooled.values.scalar_type(), at::kFloat);
  fused.pooled.values.sum().backward();
  for (const auto& parameter : layer->parameters()) {
    EXPECT_EQ(parameter.grad().scalar_type(), at::kFloat);
    EXPECT_GT(parameter.grad().abs().sum().item<double>(), 0);
  }
}

TEST_F(PoolingLayerCuda, IsBitIdenticalOverManyRuns) {
  for (const Sizes& s : {Sizes{16, 8192, 512, 512}, {3, 1001, 77, 33}}) {
    auto layer = layer_of(s.width, at::kBFloat16);
    const auto x = draw_rows(s, at::kBFloat16);
    const auto cotangent = at::randn({s.batch, s.k, s.width}, x.options());
    const auto score_cotangent = at::randn({s.batch, s.k}, x.options().dtype(at::kFloat));
    const auto first = pass(layer, x, s.k, std::nullopt, cotangent, score_cotangent).all();
    for (int run = 1; run < 20; ++run) {
      const auto again = pass(layer, x, s.k, std::nullopt, cotangent, score_cotangent).all();
      for (std::size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(again[i], first[i])) << run << " " << i;
    }
  }
}

TEST_F(PoolingLayerCuda, AGraphReplaysIt) {
  const Sizes s{2, 999, 70, 512};
  auto layer = layer_of(s.width, at::kBFloat16);
  const auto x = draw_rows(s, at::kBFloat16);
  const auto cotangent = at::randn({s.batch, s.k, s.width}, x.options());
  const auto score_cotangent = at::randn({s.batch, s.k}, x.options().dtype(at::kFloat));
  Results caught;
  const auto run = [&] { caught = pass(layer, x, s.k, std::nullopt, cotangent, score_cotangent); };
  const auto replay = captured(run, x.device());
  const auto in_graph = caught.all();
  x.copy_(draw_rows(s, at::kBFloat16));
  replay();
  torch::cuda::synchronize();
  const auto expected = pass(layer, x, s.k, std::nullopt, cotangent, score_cotangent).all();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(in_graph[i], expected[i])) << "result " << i;
}

TEST_F(PoolingLayerCuda, FiveKernelsAreAllThatItLaunches) {
  auto layer = layer_of(512, at::kBFloat16);
  const auto x = draw_rows({2, 999, 70, 512}, at::kBFloat16).requires_grad_();
  const auto cotangent = at::randn({2, 70, 512}, x.options().requires_grad(false));
  const auto parameters = layer->parameters();
  const auto found = count_launches(
      [&] {
        const auto values = layer->forward({x}, 70).pooled.values;
        torch::autograd::grad({values}, {x, parameters[0], parameters[1]}, {cotangent});
      },
      x.device());
  EXPECT_EQ(found.reason, "");
  EXPECT_EQ(found.kernels, 5);  // scores, tournament, gather; backward, sums
  EXPECT_EQ(found.copies + found.fills, 0);
}

TEST_F(PoolingLayerCuda, WhatItsKernelsDoNotTakeRunsInTurn) {
  EXPECT_FALSE(is_fused({1, 100, 10, 60000}, at::kFloat, at::kFloat));
  EXPECT_FALSE(is_fused({1, 1 << 20, 10, 512}, at::kFloat, at::kFloat));
  EXPECT_FALSE(is_fused({1, 100, 10, 512}, at::kHalf, at::kBFloat16));
  auto layer = layer_of(20000, at::kFloat);
  ASSERT_FALSE(is_fused({1, 40, 4, 20000}, at::kFloat, at::kFloat));
  const auto x = draw_rows({1, 40, 4, 20000}, at::kFloat);
  const at::NoGradGuard constant;
  EXPECT_TRUE(at::equal(layer->forward({x}, 4).scores, layer->scorer().forward({x})));
}

TEST_F(PoolingLayerCuda, RecordsOfTheLayerAreCheckedAndNameTheFusedForm) {
  for (const auto* pass_kind : {"forward", "forward+backward"})
    for (const auto* dtype : {"float32", "bfloat16", "float16"})
      for (const auto* fused : {"auto", "off"})
        for (const auto* lengths : {"full", "random"}) {
          const Json fixed = {{"batch", 2},        {"source_length", 2048},   {"pooled_length", 128},
                              {"width", 512},      {"timing.max_samples", 5}, {"timing.min_samples", 3},
                              {"pass", pass_kind}, {"dtype", dtype},          {"fused_pooling", fused},
                              {"lengths", lengths}};
          const Json measure = {"time", "memory", "flops", "roofline"};
          const auto experiment =
              experiment_from_json({{"name", "layers"}, {"level", "pooling_layer"}, {"measure", measure}, {"fixed", fixed}},
                                   "layers.json", "cuda");
          const auto record = measure_cell(experiment.cells.front());
          EXPECT_EQ(record.status, Status::ok) << fixed << record.reason;
          EXPECT_EQ(record.details["backend"]["fused_pooling"], std::string(fused) == "auto" ? "cuda" : "off");
          EXPECT_LT(std::abs(record.details["flops"]["unexplained_share"].get<double>()), 1e-6);
        }
}

}  // namespace
}  // namespace transpool
