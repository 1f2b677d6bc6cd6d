#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"
#include "runners/measure/memory.h"
#include "tests/operators/variants.h"

#include <algorithm>

namespace transpool {
namespace {

/// Declared activation bytes may fall short of what is kept by a tenth, and exceed it by as much.
constexpr double tolerance = 0.1;

/// Tensor bytes that stay allocated while the result of `forward` lives, beyond what was there before.
template <class Forward>
double kept_bytes(const Forward& forward) {
  forward();  // whatever is kept once and for all
  const auto before = allocated_cpu_bytes();
  const auto result = forward();
  return static_cast<double>(allocated_cpu_bytes() - before);
}

void expect_declared(double kept, double declared) {
  EXPECT_LE(kept, declared * (1 + tolerance)) << "more is kept than declared";
  EXPECT_GE(kept, declared * (1 - tolerance)) << "less is kept than declared";
}

class ActivationBytes : public testing::Test {
 protected:
  void SetUp() override {
    install_memory_hook();
    torch::manual_seed(20090516);
  }
};

TEST_F(ActivationBytes, HookCountsWhatIsAllocatedAndFreed) {
  const auto before = allocated_cpu_bytes();
  auto tensor = at::zeros({1000}, at::kFloat);
  EXPECT_EQ(allocated_cpu_bytes() - before, 4000);
  tensor = at::Tensor();
  EXPECT_EQ(allocated_cpu_bytes(), before);
}

TEST_F(ActivationBytes, HookGivesRawMemoryAsOneDnnAsksForIt) {
  const auto before = allocated_cpu_bytes();
  auto* data = at::getCPUAllocator()->raw_allocate(100);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u);
  EXPECT_EQ(allocated_cpu_bytes() - before, 100);
  at::getCPUAllocator()->raw_deallocate(data);
  EXPECT_EQ(allocated_cpu_bytes(), before);
}

TEST_F(ActivationBytes, PoolingKeepsWhatItDeclares) {
  const std::vector<PoolingShape> shapes = {{.batch = 3, .length = 256, .width = 32, .pooled_length = 64},
                                            {.batch = 3, .length = 200, .width = 64, .pooled_length = 48},
                                            {.batch = 2, .length = 130, .width = 48, .pooled_length = 100}};
  for (const auto& [name, variant] : pooling_registry().all()) {
    if (!runs_by_name(variant)) continue;
    for (const auto& value : option_combinations(variant, {{"seed", {1}}}))
      for (const auto& given : shapes)
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          if (dtype == at::kBFloat16 && &given != &shapes[1]) continue;  // slow on many a CPU
          auto shape = given;
          shape.dtype = dtype;
          if (variant.capabilities.pooled_length_divides_length && shape.length % shape.pooled_length != 0) continue;
          SCOPED_TRACE(value.dump() + " n " + std::to_string(shape.length) + " k " + std::to_string(shape.pooled_length) +
                       " " + dtype_name(dtype));
          const auto selection = pooling_registry().select(value);
          const auto op = variant.make(selection.options);
          const auto x = at::randn({shape.batch, shape.length, shape.width}).to(dtype).set_requires_grad(true);
          const auto scores = at::rand({shape.batch, shape.length}).set_requires_grad(true);
          // All rows valid, but known from lengths: with the masks of those and nothing left out.
          const auto every = at::full({shape.batch}, shape.length, at::kLong);
          auto some = every.clone();
          some[0] = shape.length / 2;
          const auto kept = [&](const std::optional<at::Tensor>& lengths) {
            return kept_bytes([&] { return op->forward(x, scores, shape.pooled_length, lengths); });
          };
          const auto declared = variant.cost(shape, selection.options).activation_bytes;
          expect_declared(std::max(kept(std::nullopt), kept(every)), declared);
          EXPECT_LE(kept(some), declared * (1 + tolerance));
        }
  }
}

TEST_F(ActivationBytes, AttentionKeepsWhatItDeclares) {
  const std::map<std::string, std::vector<Json>> options = {
      {"chunk", {32, 512}}, {"window", {15, 512}}, {"global_tokens", {0, 3}},  {"rounds", {1, 2}},
      {"bucket", {20}},     {"seed", {1}},         {"projected_length", {24}},
  };
  for (const auto& [name, variant] : attention_registry().all()) {
    if (!runs_by_name(variant)) continue;
    for (const auto& value : option_combinations(variant, options))
      for (const std::int64_t n : {128, 203})
        for (const auto dtype : {at::kFloat, at::kBFloat16})
          for (const bool causal : {false, true})
            for (const bool masked : {false, true}) {
              if (causal && !variant.capabilities.causal) continue;
              if (dtype == at::kBFloat16 && n == 128) continue;
              const AttentionShape shape{2, 3, n, n, 16, causal, masked, dtype};
              SCOPED_TRACE(value.dump() + " n " + std::to_string(n) + " " + dtype_name(dtype) + (causal ? " causal" : "") +
                           (masked ? " lengths" : ""));
              const auto selection = attention_registry().select(value);
              const auto op = variant.make(selection.options);
              // The layout that projections give.
              const auto draw = [&] { return at::randn({2, n, 3, 16}).to(dtype).transpose(1, 2).set_requires_grad(true); };
              const auto q = draw(), k = draw(), v = draw();
              AttentionMask mask{.key_lengths = {}, .causal = causal};
              if (masked) mask.key_lengths = at::tensor({n, n / 2}, at::kLong);
              expect_declared(kept_bytes([&] { return op->forward(q, k, v, mask); }),
                              variant.cost(shape, selection.options).activation_bytes);
            }
  }
}

}  // namespace
}  // namespace transpool
