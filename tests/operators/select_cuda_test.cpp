// ctest-labels: gpu
#include "operators/pooling/kept_rows.h"
#include "operators/pooling/pooling.h"
#include "runners/measure/cuda_graph.h"
#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

#include <torch/cuda.h>

#include <limits>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

constexpr double infinity = std::numeric_limits<double>::infinity();

const std::vector<std::string> masks = {"sigmoid_threshold", "lapsum", "sparsemap_topk", "sander_p43", "coordinate_descent"};

struct Sizes {
  std::int64_t batch, n, k, width;
};

const std::vector<Sizes> sizes = {{3, 37, 5, 24},   {1, 1, 1, 8},      {2, 50, 50, 7},    {2, 1000, 1, 16},
                                  {4, 513, 100, 3}, {2, 8192, 512, 4}, {2, 4099, 700, 1}, {1, 70000, 777, 8}};

class SelectCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
    torch::manual_seed(20090516);
  }
};

at::Tensor on_cuda(const at::Tensor& tensor) { return tensor.to(at::kCUDA); }
Lengths on_cuda(const Lengths& lengths) { return lengths ? Lengths(lengths->to(at::kCUDA)) : lengths; }

std::shared_ptr<const PoolingOperator> make(const Json& value) {
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

/// Every operator under test, by name and options.
std::vector<Json> operators() {
  std::vector<Json> all;
  for (const bool keep_order : {true, false}) {
    for (const auto& gradient : {"none", "gated", "straight_through"})
      all.push_back({{"name", "hard_topk"}, {"gradient", gradient}, {"keep_order", keep_order}});
    for (const auto& name : masks) all.push_back({{"name", name}, {"temperature", 0.1}, {"keep_order", keep_order}});
  }
  return all;
}

const std::vector<std::string> kinds = {"uniform", "ties", "equal", "near", "zeros", "special"};

/// float64 scores that float32 holds exactly.
at::Tensor draw_scores(const std::string& kind, std::int64_t batch, std::int64_t n) {
  const auto uniform = at::rand({batch, n}, at::kFloat).to(at::kDouble);
  if (kind == "uniform") return uniform;
  if (kind == "ties") return at::floor(uniform * 4) / 4 - 0.5;
  if (kind == "equal") return at::full({batch, n}, 0.5, at::kDouble);
  if (kind == "near") return 0.5 + at::floor(uniform * 6) * std::numeric_limits<float>::epsilon();
  if (kind == "zeros") return at::where(uniform < 0.5, -0.0, 0.0).to(at::kDouble);
  return (uniform - 0.5)
      .masked_fill(uniform < 0.1, infinity)
      .masked_fill(uniform > 0.8, -infinity)
      .masked_fill(uniform > 0.9, std::nan(""));
}

std::vector<Lengths> lengths_to_try(const Sizes& s) {
  const auto shorter = at::randint(0, s.n + 1, {s.batch}, at::kLong);
  shorter[0] = s.k / 2;
  if (s.batch > 1) shorter[1] = 0;
  return {std::nullopt, shorter};
}

struct Result {
  Pooled pooled;
  std::vector<at::Tensor> gradients;  ///< of x and the scores; zeros where nothing reaches the scores
};

Result run(const PoolingOperator& op, const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Lengths& lengths,
           const at::Tensor& value_cotangent, const at::Tensor& score_cotangent) {
  const auto x_leaf = x.detach().requires_grad_(), score_leaf = scores.detach().requires_grad_();
  const auto pooled = op.forward(x_leaf, score_leaf, k, lengths);
  auto loss = (pooled.values * value_cotangent).sum(at::kDouble);
  if (op.passes_score_gradient()) loss = loss + (pooled.scores.nan_to_num(0, 0, 0) * score_cotangent).sum(at::kDouble);
  auto found = torch::autograd::grad({loss}, {x_leaf, score_leaf}, {}, std::nullopt, false, /*allow_unused=*/true);
  if (!found[1].defined()) found[1] = at::zeros_like(scores);
  return {pooled, found};
}

void expect_same(const Result& device, const Result& host, double tolerance, double dot_tolerance) {
  EXPECT_TRUE(at::equal(device.pooled.positions.cpu(), host.pooled.positions));
  EXPECT_TRUE(at::equal(device.pooled.scores.cpu(), host.pooled.scores));
  EXPECT_TRUE(close(device.pooled.values.cpu(), host.pooled.values, tolerance, tolerance));
  EXPECT_TRUE(close(device.gradients[0].cpu(), host.gradients[0], tolerance, tolerance));
  // Dots of half rows are rounded on the CPU before the slopes of the mask, which may be steep, multiply them.
  const double largest = std::max(1.0, host.gradients[1].abs().max().item<double>());
  EXPECT_TRUE(close(device.gradients[1].cpu(), host.gradients[1], dot_tolerance, dot_tolerance * largest));
}

TEST_F(SelectCuda, TheKernelRunsWhereTheBackendSaysSo) {
  for (const auto& value : operators()) {
    const auto op = make(value);
    EXPECT_EQ(op->backend(at::Device(at::kCUDA)), "cuda") << value;
    EXPECT_EQ(op->backend(at::Device(at::kCPU)), "aten") << value;
  }
  const auto x = at::randn({1, 4, 2}, at::kCUDA), scores = at::rand({1, 4}, at::kCUDA);
  EXPECT_TRUE(keep_rows_by_kernel(x, scores, 2, std::nullopt, {}));
  EXPECT_FALSE(keep_rows_by_kernel(x.cpu(), scores.cpu(), 2, std::nullopt, {}));
}

TEST_F(SelectCuda, ValuesAndGradientsAreThoseOfTheCpu) {
  for (const auto& value : operators())
    for (const auto& s : sizes)
      for (const auto& kind : kinds)
        for (const auto& lengths : lengths_to_try(s)) {
          SCOPED_TRACE(value.dump() + " n " + std::to_string(s.n) + " k " + std::to_string(s.k) + " " + kind +
                       (lengths ? " lengths" : ""));
          const auto op = make(value);
          const auto x = at::randn({s.batch, s.n, s.width}, at::kDouble);
          const auto factors = at::randn({s.batch, s.k, s.width}, at::kDouble),
                     score_factors = at::randn({s.batch, s.k}, at::kDouble);
          for (const auto dtype : {at::kDouble, at::kFloat}) {
            const auto scores = draw_scores(kind, s.batch, s.n).to(dtype);
            const auto host = run(*op, x.to(dtype), scores, s.k, lengths, factors.to(dtype), score_factors.to(dtype));
            const auto device = run(*op, on_cuda(x.to(dtype)), on_cuda(scores), s.k, on_cuda(lengths),
                                    on_cuda(factors.to(dtype)), on_cuda(score_factors.to(dtype)));
            const double tolerance = dtype == at::kDouble ? 1e-9 : 1e-5;
            expect_same(device, host, tolerance, 10 * tolerance);
          }
          if (HasFailure()) return;
        }
}

TEST_F(SelectCuda, HalfTypesAreGatedInTheirOwnPrecision) {
  const Sizes s = {2, 1000, 100, 40};
  for (const auto& value : operators())
    for (const auto dtype : {at::kBFloat16, at::kHalf})
      for (const auto score_dtype : {at::kFloat, at::kDouble}) {
        SCOPED_TRACE(value.dump() + " " + dtype_name(dtype));
        const auto op = make(value);
        const auto x = at::randn({s.batch, s.n, s.width}).to(dtype), factors = at::randn({s.batch, s.k, s.width}).to(dtype);
        const auto scores = draw_scores("uniform", s.batch, s.n).to(score_dtype);
        const auto score_factors = at::randn({s.batch, s.k}, score_dtype);
        const auto host = run(*op, x, scores, s.k, std::nullopt, factors, score_factors);
        const auto device =
            run(*op, on_cuda(x), on_cuda(scores), s.k, std::nullopt, on_cuda(factors), on_cuda(score_factors));
        EXPECT_EQ(device.pooled.values.scalar_type(), dtype);
        EXPECT_EQ(device.gradients[1].scalar_type(), score_dtype);
        // Masks may differ in a last bit of float64, which rounding can make a last bit of the half type.
        const double last_bit = dtype == at::kHalf ? 1e-3 : 8e-3;
        const bool exact = value["name"] == "hard_topk";
        expect_same(device, host, exact ? 0 : last_bit, 10 * last_bit);
      }
}

TEST_F(SelectCuda, RowsThatAreNotContiguousOrAlignedAreTheSame) {
  for (const auto& value : operators()) {
    SCOPED_TRACE(value.dump());
    const auto op = make(value);
    const auto wide = at::randn({2, 100, 33}), x = wide.narrow(2, 1, 32), scores = at::rand({100, 2}).t();
    const auto flat = at::randn({2 * 100 * 32 + 1}).narrow(0, 1, 2 * 100 * 32).view({2, 100, 32});
    const auto shifted = on_cuda(at::cat({at::zeros({1}), flat.flatten()})).narrow(0, 1, flat.numel()).view_as(flat);
    const auto factors = at::randn({2, 7, 32}), score_factors = at::randn({2, 7});
    expect_same(
        run(*op, on_cuda(wide).narrow(2, 1, 32), on_cuda(scores), 7, std::nullopt, on_cuda(factors), on_cuda(score_factors)),
        run(*op, x, scores, 7, std::nullopt, factors, score_factors), 1e-5, 1e-4);
    expect_same(run(*op, shifted, on_cuda(scores), 7, std::nullopt, on_cuda(factors), on_cuda(score_factors)),
                run(*op, flat, scores, 7, std::nullopt, factors, score_factors), 1e-5, 1e-4);
  }
}

TEST_F(SelectCuda, MoreRowsThanTheKernelSortsStillFallByScore) {
  for (const auto& name : {"hard_topk", "lapsum"}) {
    SCOPED_TRACE(name);
    const auto op = make({{"name", name}, {"keep_order", false}});
    const std::int64_t n = 30000, k = 12000;
    for (const auto& kind : kinds) {
      const auto x = at::randn({2, n, 2}, at::kDouble), scores = draw_scores(kind, 2, n);
      const auto lengths = at::tensor({n, std::int64_t{11000}}, at::kLong);
      const auto factors = at::randn({2, k, 2}, at::kDouble), score_factors = at::randn({2, k}, at::kDouble);
      expect_same(
          run(*op, on_cuda(x), on_cuda(scores), k, on_cuda(Lengths(lengths)), on_cuda(factors), on_cuda(score_factors)),
          run(*op, x, scores, k, lengths, factors, score_factors), 1e-9, 1e-8);
    }
  }
}

TEST_F(SelectCuda, AMillionScoresAreSelectedFromGlobalMemory) {
  const std::int64_t n = 1 << 20, k = 1000;
  const auto scores = draw_scores("uniform", 1, n), x = at::randn({1, n, 1}, at::kDouble);
  for (const auto& name : {"hard_topk", "sigmoid_threshold"}) {
    const auto op = make({{"name", name}});
    const auto host = op->forward(x, scores, k, std::nullopt);
    const auto device = op->forward(on_cuda(x), on_cuda(scores), k, std::nullopt);
    EXPECT_TRUE(at::equal(device.positions.cpu(), host.positions)) << name;
    EXPECT_TRUE(close(device.values.cpu(), host.values, 1e-9, 1e-9)) << name;
  }
}

TEST_F(SelectCuda, MasksOfAllTemperaturesAreThoseOfTheCpu) {
  const auto x = at::randn({3, 40, 2}, at::kDouble);
  const auto scores = at::randn({3, 40}, at::kDouble) * at::tensor({1e4, 1.0, 1e-6}, at::kDouble).unsqueeze(1);
  const auto factors = at::randn({3, 7, 2}, at::kDouble), score_factors = at::zeros({3, 7}, at::kDouble);
  for (const auto& name : masks)
    for (const double temperature : {1e-6, 1e-2, 1.0, 1e2, 1e6}) {
      SCOPED_TRACE(name + " temperature " + std::to_string(temperature));
      const auto op = make({{"name", name}, {"temperature", temperature}});
      const auto host = run(*op, x, scores, 7, std::nullopt, factors, score_factors);
      const auto device = run(*op, on_cuda(x), on_cuda(scores), 7, std::nullopt, on_cuda(factors), on_cuda(score_factors));
      EXPECT_TRUE(close(device.pooled.values.cpu(), host.pooled.values, 1e-10, 1e-10));
      EXPECT_TRUE(close(device.gradients[1].cpu() * temperature, host.gradients[1] * temperature, 1e-8, 1e-9));
    }
}

TEST_F(SelectCuda, AGapAsWideAsTheRiseIsHardWhateverItsLastDigit) {
  for (const auto& name : {"sparsemap_topk", "sander_p43"})
    for (const double gap : {0.1, 0.5 - 0.4, std::nextafter(0.1, 0.0), std::nextafter(0.1, 1.0)}) {
      const auto op = make({{"name", name}, {"temperature", 0.1}});
      const auto scores = on_cuda(at::tensor({gap, gap, 0.0, 0.0}, at::kDouble).unsqueeze(0));
      const auto ones = at::ones({1, 4, 1}, scores.options());
      const auto found = run(*op, ones, scores, 2, std::nullopt, at::randn({1, 2, 1}, scores.options()),
                             at::zeros({1, 2}, scores.options()));
      EXPECT_TRUE((found.pooled.values == 1).all().item<bool>());
      EXPECT_TRUE((found.gradients[1] == 0).all().item<bool>());
    }
}

TEST_F(SelectCuda, TiesAtTheCapHaveAGradientOnlyWhereMasksMove) {
  const auto scores = at::tensor({400.0, 400.0, 400.0, 399.0, 0.5, -400.0, -400.0}, at::kDouble).unsqueeze(0);
  const auto ones = at::ones({1, 7, 1}, at::kDouble), factors = at::randn({1, 3, 1}, at::kDouble);
  const auto score_factors = at::zeros({1, 3}, at::kDouble);
  for (double temperature = 0.02; temperature < 0.1; temperature += 0.002) {
    SCOPED_TRACE("temperature " + std::to_string(temperature));
    const auto op = make({{"name", "coordinate_descent"}, {"temperature", temperature}});
    const auto host = run(*op, ones, scores, 3, std::nullopt, factors, score_factors);
    const auto device = run(*op, on_cuda(ones), on_cuda(scores), 3, std::nullopt, on_cuda(factors), on_cuda(score_factors));
    expect_same(device, host, 1e-9, 1e-8);
  }
}

TEST_F(SelectCuda, GradientsMatchFiniteDifferences) {
  for (const auto& value : operators()) {
    if (value["name"] == "hard_topk" && value["gradient"] != "gated") continue;
    SCOPED_TRACE(value.dump());
    const auto op = make(value);
    const auto lengths = at::tensor({9, 2}, at::kLong);
    const auto function = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      const auto pooled = op->forward(on_cuda(in[0]), on_cuda(in[1]), 4, on_cuda(Lengths(lengths)));
      return {pooled.values.cpu(), pooled.scores.cpu()};
    };
    EXPECT_TRUE(gradients_match_differences(function, {at::randn({2, 9, 3}, at::kDouble), at::rand({2, 9}, at::kDouble)}));
  }
}

TEST_F(SelectCuda, OneInputAloneGetsItsGradient) {
  for (const auto& value : operators()) {
    SCOPED_TRACE(value.dump());
    const auto op = make(value);
    const auto x = on_cuda(at::randn({2, 64, 8})), scores = on_cuda(at::rand({2, 64}));
    const auto factors = on_cuda(at::randn({2, 5, 8})), score_factors = on_cuda(at::randn({2, 5}));
    const auto both = run(*op, x, scores, 5, std::nullopt, factors, score_factors);
    const auto x_leaf = x.detach().requires_grad_();
    const auto of_x = op->forward(x_leaf, scores, 5, std::nullopt);
    EXPECT_TRUE(at::equal(torch::autograd::grad({of_x.values}, {x_leaf}, {factors})[0], both.gradients[0]));
    if (!op->passes_score_gradient()) continue;
    const auto leaf = scores.detach().requires_grad_();
    const auto of_scores = op->forward(x, leaf, 5, std::nullopt);
    EXPECT_TRUE(at::equal(torch::autograd::grad({of_scores.values, of_scores.scores}, {leaf}, {factors, score_factors})[0],
                          both.gradients[1]));
  }
}

TEST_F(SelectCuda, ManyRunsAreBitIdentical) {
  for (const auto& value : operators()) {
    SCOPED_TRACE(value.dump());
    const auto op = make(value);
    const auto x = on_cuda(at::randn({4, 8192, 64})), scores = on_cuda(at::rand({4, 8192}));
    const auto factors = on_cuda(at::randn({4, 512, 64})), score_factors = on_cuda(at::randn({4, 512}));
    const auto first = run(*op, x, scores, 512, std::nullopt, factors, score_factors);
    for (int repeat = 0; repeat < 100; ++repeat) {
      const auto again = run(*op, x, scores, 512, std::nullopt, factors, score_factors);
      ASSERT_TRUE(at::equal(again.pooled.positions, first.pooled.positions));
      ASSERT_TRUE(at::equal(again.pooled.values, first.pooled.values));
      ASSERT_TRUE(at::equal(again.gradients[0], first.gradients[0]));
      ASSERT_TRUE(at::equal(again.gradients[1], first.gradients[1]));
    }
  }
}

TEST_F(SelectCuda, AGraphReplaysForwardAndBackward) {
  for (const auto& value : operators()) {
    SCOPED_TRACE(value.dump());
    const auto op = make(value);
    const auto x = on_cuda(at::randn({2, 1000, 16})), scores = on_cuda(at::rand({2, 1000}));
    const auto lengths = on_cuda(at::tensor({1000, 30}, at::kLong));
    const auto factors = on_cuda(at::randn({2, 64, 16})), score_factors = on_cuda(at::randn({2, 64}));
    const auto call = [&] { return run(*op, x, scores, 64, lengths, factors, score_factors); };
    Result kept;
    const auto replay = captured([&] { kept = call(); }, x.device());
    for (int repeat = 0; repeat < 3; ++repeat) {
      x.copy_(at::randn_like(x));
      scores.copy_(at::rand_like(scores));
      replay();
      const auto eager = call();
      EXPECT_TRUE(at::equal(kept.pooled.positions, eager.pooled.positions));
      EXPECT_TRUE(at::equal(kept.pooled.scores, eager.pooled.scores));
      EXPECT_TRUE(at::equal(kept.pooled.values, eager.pooled.values));
      EXPECT_TRUE(at::equal(kept.gradients[0], eager.gradients[0]));
      EXPECT_TRUE(at::equal(kept.gradients[1], eager.gradients[1]));
    }
  }
}

}  // namespace
}  // namespace transpool
