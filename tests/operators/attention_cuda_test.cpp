// ctest-labels: gpu
#include "operators/attention/attention.h"
#include "operators/attention/lsh_kernels.h"
#include "runners/measure/cuda_graph.h"
#include "runners/measure/level.h"
#include "runners/sweep/settings.h"
#include "tests/operators/variants.h"

#include <torch/cuda.h>

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

class AttentionCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
    torch::manual_seed(1706);
  }
};

struct Case {
  std::int64_t batch = 3, heads = 2, n = 1, width = 16;
  bool causal = false, masked = false;
  at::ScalarType dtype = at::kBFloat16;
  std::string layout = "heads";

  std::string name() const {
    return "n " + std::to_string(n) + " " + dtype_name(dtype) + " " + layout + (causal ? " causal" : "") +
           (masked ? " lengths" : "");
  }
};

std::shared_ptr<const AttentionOperator> made(const Json& value, bool reference) {
  const auto selection = attention_registry().select(value);
  return reference ? selection.variant->reference(selection.options) : selection.variant->make(selection.options);
}

/// Values that every dtype holds, (B, h, n, e) with strides of contiguous heads, of (B, n, h, e), or of (B, n, 3, h, e).
at::Tensor draw(const Case& c) {
  const auto values = at::randn({c.batch, c.heads, c.n, c.width}).to(at::kBFloat16).to(at::kDouble);
  const auto device = values.to(at::TensorOptions(at::kCUDA).dtype(c.dtype));
  if (c.layout == "heads") return device;
  if (c.layout == "rows") return device.transpose(1, 2).contiguous().transpose(1, 2);
  auto all = at::empty({c.batch, c.n, 3, c.heads, c.width}, device.options());
  const auto part = all.select(2, 1).transpose(1, 2);
  part.copy_(device);
  return part;
}

Lengths lengths_of(const Case& c) {
  return c.masked ? Lengths(at::tensor({std::int64_t{0}, (c.n + 1) / 2, c.n}, at::kLong)) : std::nullopt;
}

/// The output and the gradients of q, k and v.
std::vector<at::Tensor> pass(const AttentionOperator& op, const std::vector<at::Tensor>& inputs, const AttentionMask& mask,
                             const at::Tensor& cotangent) {
  std::vector<at::Tensor> leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().requires_grad_());
  const auto out = op.forward(leaves[0], leaves[1], leaves[2], mask);
  std::vector<at::Tensor> all = {out.detach()};
  for (const auto& gradient : torch::autograd::grad({out}, leaves, {cotangent}, std::nullopt, false, true))
    all.push_back(gradient.defined() ? gradient : at::zeros({1}, out.options()));
  return all;
}

double relative_distance(const at::Tensor& a, const at::Tensor& b) {
  const auto left = a.cpu().to(at::kDouble), right = b.cpu().to(at::kDouble);
  const double distance = (left - right).norm().item<double>();
  // A result that is zero by cancellation has no digits to compare.
  return distance / std::max(right.norm().item<double>(), 1e-2 * std::sqrt(static_cast<double>(right.numel())));
}

double tolerance(at::ScalarType dtype) { return dtype == at::kBFloat16 ? 2e-2 : dtype == at::kHalf ? 4e-3 : 1e-4; }

/// Against the reference in float64 on the same values, where `on` stands.
void expect_reference(const Json& value, const Case& c, const at::Device& on) {
  SCOPED_TRACE(value.dump() + " " + c.name());
  const std::vector<at::Tensor> inputs = {draw(c), draw(c), draw(c)};
  const auto cotangent = draw(c);
  const auto lengths = lengths_of(c);
  const AttentionMask mask{lengths ? Lengths(lengths->to(at::kCUDA)) : lengths, c.causal};
  const auto found = pass(*made(value, false), inputs, mask, cotangent);
  std::vector<at::Tensor> exact;
  for (const auto& input : inputs) exact.push_back(input.to(on).to(at::kDouble).contiguous());
  const auto expected = pass(*made(value, true), exact, {lengths ? Lengths(lengths->to(on)) : lengths, c.causal},
                             cotangent.to(on).to(at::kDouble).contiguous());
  const std::vector<std::string> names = {"output", "gradient of q", "gradient of k", "gradient of v"};
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].scalar_type(), c.dtype);
    EXPECT_LT(relative_distance(found[i], expected[i]), tolerance(c.dtype)) << names[i];
  }
}

void expect_reference_everywhere(const std::vector<Json>& values, const std::vector<std::int64_t>& sizes,
                                 const at::Device& on = at::kCPU) {
  for (const auto& value : values)
    for (const auto n : sizes)
      for (const bool causal : {false, true})
        for (const bool masked : {false, true})
          for (const auto& [dtype, layout] : {std::pair{at::kBFloat16, "heads"},
                                              {at::kBFloat16, "rows"},
                                              {at::kBFloat16, "packed"},
                                              {at::kHalf, "rows"},
                                              {at::kFloat, "heads"}})
            expect_reference(value, {.n = n, .causal = causal, .masked = masked, .dtype = dtype, .layout = layout}, on);
}

TEST_F(AttentionCuda, BlockwiseIsItsReference) {
  expect_reference_everywhere({{{"name", "blockwise"}, {"chunk", 1}},
                               {{"name", "blockwise"}, {"chunk", 16}},
                               {{"name", "blockwise"}, {"chunk", 64}}},
                              {1, 2, 16, 48, 77, 200});
}

TEST_F(AttentionCuda, SlidingWindowIsItsReference) {
  expect_reference_everywhere({{{"name", "sliding_window"}, {"window", 1}},
                               {{"name", "sliding_window"}, {"window", 16}},
                               {{"name", "sliding_window"}, {"window", 16}, {"global_tokens", 5}},
                               {{"name", "sliding_window"}, {"window", 40}, {"global_tokens", 1}}},
                              {1, 2, 17, 48, 77});
}

TEST_F(AttentionCuda, LshIsItsReference) {
  // The buckets are the device's: its products may round another way than the CPU's.
  expect_reference_everywhere({{{"name", "lsh"}, {"bucket", 8}, {"rounds", 1}, {"seed", 1}},
                               {{"name", "lsh"}, {"bucket", 4}, {"rounds", 2}, {"hash_buckets", 6}, {"seed", 1}},
                               {{"name", "lsh"}, {"bucket", 16}, {"rounds", 3}, {"seed", 1}},
                               {{"name", "lsh"}, {"bucket", 64}, {"seed", 1}}},
                              {1, 2, 17, 77}, at::kCUDA);
}

TEST_F(AttentionCuda, LshKernelsAreTheReference) {
  for (const auto& [bucket, rounds, width] : {std::tuple{64, 1, 64}, {64, 4, 64}, {32, 3, 64}, {64, 8, 32}, {32, 2, 128}})
    for (const std::int64_t n : {64, 65, 200})
      for (const bool causal : {false, true})
        for (const bool masked : {false, true})
          for (const auto& [dtype, layout] :
               {std::pair{at::kBFloat16, "heads"}, {at::kBFloat16, "packed"}, {at::kHalf, "rows"}})
            expect_reference({{"name", "lsh"}, {"bucket", bucket}, {"rounds", rounds}, {"hash_buckets", 4}, {"seed", 1}},
                             {.n = n, .width = width, .causal = causal, .masked = masked, .dtype = dtype, .layout = layout},
                             at::kCUDA);
}

/// How far below the largest product of each hash that of the chosen bucket is, q (B, h, n, e) and planes in float64.
double hash_gap(const at::Tensor& q, const at::Tensor& planes, const LshBuckets& buckets, const at::Tensor& hashes) {
  const auto projected = at::matmul(q.to(at::kDouble).unsqueeze(2), planes.to(at::kDouble));
  const auto gap = [&](std::int64_t start, std::int64_t count, const at::Tensor& chosen) {
    const auto sides = projected.narrow(4, start, count / 2);
    const auto all = at::cat({sides, -sides}, 4);
    return (std::get<0>(all.max(4)) - all.gather(4, chosen.unsqueeze(4)).squeeze(4)).max().item<double>();
  };
  const auto bucket = hashes.to(at::kLong);
  const double first = gap(0, buckets.first, at::floor_divide(bucket, buckets.second));
  return buckets.second == 1 ? first
                             : std::max(first, gap(buckets.first / 2, buckets.second, bucket.remainder(buckets.second)));
}

TEST_F(AttentionCuda, LshHashesAsItsProductsDo) {
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat})
    for (const std::int64_t width : {32, 64, 128})
      for (const LshBuckets buckets : {LshBuckets{74, 1}, LshBuckets{180, 1}, LshBuckets{6, 34}}) {
        SCOPED_TRACE(dtype_name(dtype) + " " + std::to_string(width) + " " + std::to_string(buckets.all()));
        auto planes = at::randn({3, 4, width, buckets.planes()}, at::kCUDA);
        planes = planes.to(at::kBFloat16).to(at::kHalf).to(at::kFloat);
        const auto q = at::randn({2, 3, 1001, width}, at::kCUDA).to(dtype);
        const auto hashes = hash_by_kernel(q, planes, buckets);
        ASSERT_TRUE(hashes.has_value());
        EXPECT_LT(hash_gap(q, planes, buckets, *hashes), 1e-4);
        // Other kernels, another order of the sums: near ties alone may differ.
        const auto exact = *hash_by_kernel(q.to(at::kDouble), planes, buckets);
        EXPECT_LT((exact != *hashes).to(at::kDouble).mean().item<double>(), 1e-3);
        EXPECT_LT(hash_gap(q, planes, buckets, exact), 1e-4);
      }
}

TEST_F(AttentionCuda, LshHashesRowsOfZerosToTheFirstBucketAsOnTheCpu) {
  const auto planes = at::randn({2, 1, 64, 11}).to(at::kBFloat16).to(at::kFloat).cuda();
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const auto q = at::zeros({1, 2, 40, 64}, at::TensorOptions(at::kCUDA).dtype(dtype));
    EXPECT_TRUE((*hash_by_kernel(q, planes, {10, 12}) == 0).all().item<bool>());
  }
}

TEST_F(AttentionCuda, WidthsThatFlashDoesNotTakeAreComputedToo) {
  for (const std::int64_t width : {4, 24, 264})
    for (const bool masked : {false, true})
      for (const Json& value : {Json{{"name", "blockwise"}, {"chunk", 16}},
                                Json{{"name", "sliding_window"}, {"window", 7}, {"global_tokens", 2}}})
        expect_reference(value, {.n = 45, .width = width, .masked = masked, .layout = "rows"}, at::kCPU);
}

const std::vector<Json> variants = {
    {{"name", "blockwise"}, {"chunk", 64}},
    {{"name", "sliding_window"}, {"window", 33}},
    {{"name", "sliding_window"}, {"window", 33}, {"global_tokens", 9}},
    {{"name", "lsh"}, {"bucket", 32}, {"seed", 1}},
};

TEST_F(AttentionCuda, ForwardIsBitIdenticalOverManyRuns) {
  for (const auto& value : variants)
    for (const bool masked : {false, true}) {
      const Case c{.n = 300, .width = 64, .masked = masked};
      SCOPED_TRACE(value.dump() + " " + c.name());
      const auto q = draw(c), k = draw(c), v = draw(c);
      const AttentionMask mask{masked ? Lengths(lengths_of(c)->to(at::kCUDA)) : std::nullopt};
      const auto op = made(value, false);
      const auto first = op->forward(q, k, v, mask);
      for (int run = 0; run < 20; ++run) ASSERT_TRUE(at::equal(op->forward(q, k, v, mask), first));
    }
}

TEST_F(AttentionCuda, BothPassesAreCapturedByAGraphThatReadsTheLengthsAnew) {
  for (const auto& value : variants)
    for (const bool masked : {false, true}) {
      const Case c{.n = 300, .width = 64, .masked = masked};
      SCOPED_TRACE(value.dump() + " " + c.name());
      const std::vector<at::Tensor> inputs = {draw(c), draw(c), draw(c)};
      const auto cotangent = draw(c);
      const AttentionMask mask{masked ? Lengths(lengths_of(c)->to(at::kCUDA)) : std::nullopt};
      const auto op = made(value, false);
      std::vector<at::Tensor> results;
      const auto replay = captured([&] { results = pass(*op, inputs, mask, cotangent); }, at::kCUDA);
      inputs[0].mul_(0.5);
      if (masked) mask.key_lengths->copy_(at::tensor({7, 300, 111}, at::kLong));
      replay();
      const auto expected = pass(*op, inputs, mask, cotangent);
      for (std::size_t i = 0; i < results.size(); ++i) EXPECT_LT(relative_distance(results[i], expected[i]), 1e-2) << i;
    }
}

TEST_F(AttentionCuda, DeclaredFlopsAgreeWithTheObservedOnes) {
  for (const Json& attention :
       {Json{{"name", "blockwise"}, {"chunk", 64}}, Json{{"name", "sliding_window"}, {"window", 33}},
        Json{{"name", "sliding_window"}, {"window", 33}, {"global_tokens", 9}}, Json{{"name", "lsh"}, {"seed", 1}}})
    for (const bool causal : {false, true})
      for (const auto* lengths : {"full", "random"})
        for (const auto* dtype : {"bfloat16", "float32"}) {
          Json given = {{"operator", "attention"}, {"attention", attention}, {"causal", causal},
                        {"lengths", lengths},      {"dtype", dtype},         {"batch", 2},
                        {"source_length", 200},    {"width", 128},           {"heads", 2}};
          const auto specs = settings_of("operator");
          for (const auto& spec : specs) {
            if (given.contains(spec.name)) given[spec.name] = resolve_setting(spec, given[spec.name], {});
            else if (spec.type == OptionType::variant && !spec.fallback.is_null())
              given[spec.name] = resolve_setting(spec, spec.fallback, {});
          }
          Cell cell;
          cell.level = "operator";
          cell.measure = {"flops"};
          cell.device = "cuda";
          cell.values = Options(specs, given, "setting", {});
          const auto record = measure_cell(cell);
          SCOPED_TRACE(attention.dump() + (causal ? " causal " : " ") + lengths + " " + dtype);
          EXPECT_EQ(record.status, Status::ok) << record.reason;
          EXPECT_LT(std::abs(record.details["flops"]["unexplained_share"].get<double>()), 1e-3)
              << record.details["flops"].dump();
        }
}

}  // namespace
}  // namespace transpool
