// ctest-labels: gpu
#include "tests/operators/mixtures.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/cuda.h>

#ifdef TRANSPOOL_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include <limits>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

constexpr double infinity = std::numeric_limits<double>::infinity();

class RelaxationsOnCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
    torch::manual_seed(20060316);
  }
};

struct Sizes {
  std::int64_t batch, n, k, width;
};

at::Tensor on_cuda(const at::Tensor& tensor) { return tensor.to(at::kCUDA); }
Lengths on_cuda(const Lengths& lengths) { return lengths ? Lengths(lengths->to(at::kCUDA)) : lengths; }

/// Every variant that runs kernels of its own on CUDA, with sharp and mild weights.
std::vector<Json> relaxations() {
  std::vector<Json> all;
  for (const double alpha : {3.0, 1e3}) all.push_back({{"name", "iterative_softmax"}, {"alpha", alpha}});
  for (const double temperature : {1e-3, 0.3}) all.push_back({{"name", "softsort"}, {"temperature", temperature}});
  // Mild enough that rounds in a row do not amplify the last digits.
  for (const double temperature : {1.0, 3.0}) all.push_back({{"name", "relaxed_subset"}, {"temperature", temperature}});
  for (const double temperature : {0.1, 1.0}) all.push_back({{"name", "soft_topk"}, {"temperature", temperature}});
  return all;
}

at::Tensor draw_scores(const std::string& kind, std::int64_t batch, std::int64_t n) {
  if (kind == "equal") return at::full({batch, n}, 0.5, at::kDouble);
  const auto ranks = std::get<1>(std::get<1>(at::rand({batch, n}, at::kDouble).sort(1)).sort(1)).to(at::kDouble);
  const auto scores = (ranks + 0.5) / static_cast<double>(n);
  if (kind == "distinct") return scores;
  if (kind == "ties") return at::floor(scores * 4) / 4;
  if (kind == "zeros") return at::where(at::rand({batch, n}) < 0.5, 0.0, -0.0).to(at::kDouble);
  const auto which = at::rand({batch, n});
  return scores.masked_fill(which < 0.1, infinity)
      .masked_fill(which > 0.8, -infinity)
      .masked_fill(which > 0.9, std::nan(""));
}

/// Values, scores, positions, and the gradients of rows and scores for a loss on values and scores both.
std::vector<at::Tensor> pass(const PoolingOperator& op, const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const Lengths& lengths, const std::vector<at::Tensor>& cotangents) {
  const auto in = x.detach().requires_grad_(true);
  const auto s = scores.detach().requires_grad_(true);
  const auto pooled = op.forward(in, s, k, lengths);
  auto gradients = torch::autograd::grad({pooled.values, pooled.scores}, {in, s}, cotangents);
  return {pooled.values.detach(), pooled.scores.detach(), pooled.positions, gradients[0], gradients[1]};
}

double tolerance_of(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-9 : dtype == at::kFloat ? 1e-3 : 3e-2; }

void expect_as_on_the_cpu(const Json& value, const Sizes& s, const std::string& kind, bool with_lengths,
                          at::ScalarType dtype) {
  SCOPED_TRACE(value.dump() + " n " + std::to_string(s.n) + " k " + std::to_string(s.k) + " " + kind + " " +
               dtype_name(dtype) + (with_lengths ? " lengths" : ""));
  const auto op = pooling(value);
  auto x = at::randn({s.batch, s.n, s.width}, at::kDouble).to(dtype);
  auto scores = draw_scores(kind, s.batch, s.n).to(accumulation_dtype(dtype));
  Lengths lengths;
  if (with_lengths) {
    lengths = at::randint(0, s.n + 1, {s.batch}, at::kLong);
    (*lengths)[0] = 0;
    const auto padded = valid_positions(*lengths, s.n).logical_not();
    x.masked_fill_(padded.unsqueeze(2), std::nan(""));
    scores.masked_fill_(padded, infinity);
  }
  const std::vector<at::Tensor> cotangents = {at::randn({s.batch, s.k, s.width}, at::kDouble).to(dtype),
                                              at::randn({s.batch, s.k}, at::kDouble).to(scores.scalar_type())};
  // Half types: the CPU rounds the weights, so it is asked in float32.
  const bool half = dtype != at::kDouble && dtype != at::kFloat;
  const auto host_dtype = half ? at::kFloat : dtype;
  const auto host = pass(*op, x.to(host_dtype), scores, s.k, lengths, {cotangents[0].to(host_dtype), cotangents[1]});
  const auto device =
      pass(*op, on_cuda(x), on_cuda(scores), s.k, on_cuda(lengths), {on_cuda(cotangents[0]), on_cuda(cotangents[1])});
  EXPECT_TRUE(at::equal(device[2].cpu(), host[2])) << "positions";
  for (const std::size_t i : {0, 1, 3, 4}) {
    const double largest = std::max(1.0, host[i].abs().max().item<double>());
    // Half types: a mixture that is a product takes the weights' gradients in them, rounded.
    const bool rounded = half && i == 4 && (value["name"] == "relaxed_subset" || value["name"] == "soft_topk");
    // Scores that stand for infinity leave Newton's system nearly singular.
    const bool singular = kind == "infinite" && value["name"] == "soft_topk";
    const double tolerance = rounded ? 0.1 : std::max(tolerance_of(i == 1 ? at::kFloat : dtype), singular ? 1e-5 : 0);
    EXPECT_TRUE(close(device[i].cpu().to(at::kDouble), host[i].to(at::kDouble), tolerance, tolerance * largest))
        << "result " << i;
  }
}

TEST_F(RelaxationsOnCuda, GiveWhatTheyGiveOnTheCpu) {
  for (const auto& value : relaxations())
    for (const Sizes& s : {Sizes{3, 37, 5, 24},
                           {2, 64, 16, 7},
                           {2, 9, 9, 8},
                           {2, 50, 1, 40},
                           {1, 1, 1, 1},
                           {2, 700, 300, 72},
                           {1, 3000, 37, 513}})
      for (const auto* kind : {"distinct", "ties", "equal", "zeros", "infinite"})
        for (const bool with_lengths : {false, true})
          for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
            expect_as_on_the_cpu(value, s, kind, with_lengths, dtype);
}

TEST_F(RelaxationsOnCuda, RankMoreRowsThanOneBlockHolds) {
  for (const auto& value : relaxations())
    for (const auto* kind : {"distinct", "ties"}) expect_as_on_the_cpu(value, {2, 20000, 40, 8}, kind, true, at::kDouble);
}

using RelaxedSubsetRounds = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                       at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                                           const at::Tensor&, std::int64_t, double);

/// Coefficients that the rounds of `relaxed_subset` need for each batch row; 0 where they go column by column.
std::vector<int> relaxed_subset_degrees(const at::Tensor& scores, std::int64_t k, double temperature) {
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("transpool::relaxed_subset_rounds", "").typed<RelaxedSubsetRounds>();
  const auto a = on_cuda(scores.to(at::kDouble));
  const auto degrees = std::get<3>(op.call(a.unsqueeze(2), a, a, k, temperature)).cpu();
  return {degrees.data_ptr<int>(), degrees.data_ptr<int>() + degrees.numel()};
}

TEST_F(RelaxationsOnCuda, RoundsOfSmoothWeightsAreInterpolatedAndAllOthersGoColumnByColumn) {
  for (const auto degree : relaxed_subset_degrees(at::rand({3, 8192}), 512, 0.3)) EXPECT_GT(degree, 0);
  for (const auto degree : relaxed_subset_degrees(at::rand({3, 8192}), 512, 1e-3)) EXPECT_EQ(degree, 0);
  for (const auto degree : relaxed_subset_degrees(at::rand({3, 16}), 16, 0.3)) EXPECT_EQ(degree, 0);
  const auto mixed = at::stack({at::rand({4096}), at::rand({4096}) * 100});
  const auto degrees = relaxed_subset_degrees(mixed, 64, 0.3);
  EXPECT_GT(degrees[0], 0);
  EXPECT_EQ(degrees[1], 0);
}

TEST_F(RelaxationsOnCuda, RoundsOfSmoothWeightsAreThoseOfTheCpuAtTheDefaultTemperature) {
  for (const auto* kind : {"distinct", "ties"})
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16})
      for (const bool with_lengths : {false, true})
        expect_as_on_the_cpu({{"name", "relaxed_subset"}}, {2, 4099, 130, 8}, kind, with_lengths, dtype);
}

TEST_F(RelaxationsOnCuda, SeriesTakeRowsOfAnyWidth) {
  for (const Sizes& s : {Sizes{2, 300, 33, 1}, {2, 300, 33, 7}, {3, 300, 1, 24}, {2, 1030, 65, 130}, {2, 400, 40, 513}})
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
      for (const bool with_lengths : {false, true})
        expect_as_on_the_cpu({{"name", "relaxed_subset"}, {"temperature", 1.0}}, s, "distinct", with_lengths, dtype);
}

/// Scores of which the first and last batch rows have smooth weights and the others have not.
at::Tensor scores_of_both_forms(std::int64_t n) {
  return at::stack({at::rand({n}), at::rand({n}) * 100, at::rand({n}) * 100, at::rand({n})});
}

TEST_F(RelaxationsOnCuda, BothFormsOfTheRoundsShareABatch) {
  const std::int64_t n = 700, k = 60;
  const auto scores = scores_of_both_forms(n);
  const auto degrees = relaxed_subset_degrees(scores, k, 1.0);
  for (const std::size_t b : {0, 3}) EXPECT_GT(degrees[b], 0);
  for (const std::size_t b : {1, 2}) EXPECT_EQ(degrees[b], 0);
  const auto op = pooling({{"name", "relaxed_subset"}, {"temperature", 1.0}});
  for (const std::int64_t width : {1, 24, 65, 256})
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
      for (const bool with_lengths : {false, true}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + " d " + std::to_string(width) + (with_lengths ? " lengths" : ""));
        auto x = at::randn({4, n, width}, at::kDouble).to(dtype);
        Lengths lengths;
        if (with_lengths) {
          lengths = at::tensor({n, n - 1, n / 2, n / 3}, at::kLong);
          x.masked_fill_(valid_positions(*lengths, n).logical_not().unsqueeze(2), std::nan(""));
        }
        const auto accumulated = accumulation_dtype(dtype);
        const auto s = scores.to(accumulated);
        const std::vector<at::Tensor> cotangents = {at::randn({4, k, width}, at::kDouble).to(dtype),
                                                    at::randn({4, k}, at::kDouble).to(accumulated)};
        const auto host = pass(*op, x.to(accumulated), s, k, lengths, {cotangents[0].to(accumulated), cotangents[1]});
        const auto device =
            pass(*op, on_cuda(x), on_cuda(s), k, on_cuda(lengths), {on_cuda(cotangents[0]), on_cuda(cotangents[1])});
        for (const std::size_t i : {0, 1, 3, 4}) {
          const double tolerance = i == 1 ? 1e-4 : tolerance_of(dtype);
          for (std::int64_t b = 0; b < 4; ++b) {
            const auto expected = host[i][b].to(at::kDouble);
            const double largest = std::max(1.0, expected.abs().max().item<double>());
            EXPECT_TRUE(close(device[i][b].cpu().to(at::kDouble), expected, tolerance, tolerance * largest))
                << "result " << i << " of batch row " << b;
          }
        }
      }
}

TEST_F(RelaxationsOnCuda, BothFormsGiveEqualBitsInEveryRunAndFromAGraph) {
  const std::int64_t n = 1000, k = 50;
  const auto op = pooling({{"name", "relaxed_subset"}, {"temperature", 1.0}});
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto x = on_cuda(at::randn({4, n, 136}).to(dtype)), scores = on_cuda(scores_of_both_forms(n));
    const std::vector<at::Tensor> cotangents = {on_cuda(at::randn({4, k, 136}).to(dtype)), on_cuda(at::randn({4, k}))};
    const auto first = pass(*op, x, scores, k, std::nullopt, cotangents);
    for (int run = 0; run < 20; ++run) {
      const auto again = pass(*op, x, scores, k, std::nullopt, cotangents);
      for (std::size_t i = 0; i < first.size(); ++i) ASSERT_TRUE(at::equal(again[i], first[i])) << "result " << i;
    }
#ifdef TRANSPOOL_CUDA
    const auto stream = c10::cuda::getStreamFromPool();
    const c10::cuda::CUDAStreamGuard guard(stream);
    pass(*op, x, scores, k, std::nullopt, cotangents);
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const auto replayed = pass(*op, x, scores, k, std::nullopt, cotangents);
    graph.capture_end();
    // Which batch row takes which form is decided anew.
    scores.copy_(scores.flip(0).roll(1, 0));
    graph.replay();
    const auto expected = pass(*op, x, scores, k, std::nullopt, cotangents);
    stream.synchronize();
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(replayed[i], expected[i])) << "result " << i;
#endif
  }
}

TEST_F(RelaxationsOnCuda, RelaxedSubsetGivesTheSameGradientWhereItIsTheOnlyOneWanted) {
  const auto op = pooling({{"name", "relaxed_subset"}, {"temperature", 1.0}});
  const auto x = on_cuda(at::randn({4, 300, 24})), scores = on_cuda(scores_of_both_forms(300));
  const auto gradients_in = [&](bool rows, bool weights) {
    const auto in = x.detach().requires_grad_(rows), s = scores.detach().requires_grad_(weights);
    std::vector<at::Tensor> wanted;
    if (rows) wanted.push_back(in);
    if (weights) wanted.push_back(s);
    return torch::autograd::grad({op->forward(in, s, 20, std::nullopt).values.square().sum()}, wanted);
  };
  const auto both = gradients_in(true, true);
  EXPECT_TRUE(at::equal(gradients_in(true, false)[0], both[0]));
  EXPECT_TRUE(at::equal(gradients_in(false, true)[0], both[1]));
}

TEST_F(RelaxationsOnCuda, SayThatTheirKernelsRun) {
  for (const auto& value : relaxations()) EXPECT_EQ(pooling(value)->backend(at::kCUDA), "cuda");
}

TEST_F(RelaxationsOnCuda, TakeViewsThatAreNotAligned) {
  for (const auto& value : relaxations()) {
    const auto op = pooling(value);
    const auto rows = on_cuda(at::randn({2, 40, 17}));
    const auto scores = on_cuda(at::rand({2, 80}));
    const auto x = rows.narrow(2, 1, 16);
    const auto s = scores.slice(1, 0, 80, 2);
    const auto of_views = op->forward(x, s, 5, std::nullopt);
    const auto of_copies = op->forward(x.contiguous().clone(), s.contiguous().clone(), 5, std::nullopt);
    EXPECT_TRUE(at::equal(of_views.values, of_copies.values));
    const auto offset = on_cuda(at::randn({2 * 40 * 16 + 1})).narrow(0, 1, 2 * 40 * 16).view({2, 40, 16});
    EXPECT_TRUE(close(op->forward(offset, s, 5, std::nullopt).values, op->forward(offset.clone(), s, 5, std::nullopt).values,
                      1e-5, 1e-5));
  }
}

TEST_F(RelaxationsOnCuda, AreBitIdenticalOverManyRuns) {
  for (const auto& value : relaxations()) {
    const auto op = pooling(value);
    const auto x = on_cuda(at::randn({4, 8192, 128})), scores = on_cuda(at::rand({4, 8192}));
    const std::vector<at::Tensor> cotangents = {on_cuda(at::randn({4, 512, 128})), on_cuda(at::randn({4, 512}))};
    const auto first = pass(*op, x, scores, 512, std::nullopt, cotangents);
    for (int run = 0; run < 30; ++run) {
      const auto again = pass(*op, x, scores, 512, std::nullopt, cotangents);
      for (std::size_t i = 0; i < first.size(); ++i) ASSERT_TRUE(at::equal(again[i], first[i])) << value << " result " << i;
    }
  }
}

#ifdef TRANSPOOL_CUDA
TEST_F(RelaxationsOnCuda, ReplayFromAGraph) {
  for (const auto& value : relaxations()) {
    const auto op = pooling(value);
    const auto x = on_cuda(at::randn({2, 1000, 64})), scores = on_cuda(at::rand({2, 1000}));
    const std::vector<at::Tensor> cotangents = {on_cuda(at::randn({2, 50, 64})), on_cuda(at::randn({2, 50}))};
    const auto stream = c10::cuda::getStreamFromPool();
    const c10::cuda::CUDAStreamGuard guard(stream);
    pass(*op, x, scores, 50, std::nullopt, cotangents);
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const auto replayed = pass(*op, x, scores, 50, std::nullopt, cotangents);
    graph.capture_end();
    scores.copy_(at::rand({2, 1000}));
    x.copy_(at::randn({2, 1000, 64}));
    graph.replay();
    const auto expected = pass(*op, x, scores, 50, std::nullopt, cotangents);
    stream.synchronize();
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(replayed[i], expected[i])) << "result " << i;
  }
}
#endif

TEST_F(RelaxationsOnCuda, GradientsMatchFiniteDifferences) {
  for (const Json& value :
       {Json{{"name", "iterative_softmax"}, {"alpha", 5.0}}, Json{{"name", "softsort"}, {"temperature", 0.2}}}) {
    const auto op = pooling(value);
    const auto function = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      const auto pooled = op->forward(on_cuda(in[0]), on_cuda(in[1]), 3, std::nullopt);
      return {pooled.values.cpu(), pooled.scores.cpu()};
    };
    EXPECT_TRUE(gradients_match_differences(function, {at::randn({2, 9, 2}, at::kDouble), draw_scores("distinct", 2, 9)}));
  }
}

}  // namespace
}  // namespace transpool
