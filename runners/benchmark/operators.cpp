#include "runners/measure/device.h"
#include "runners/measure/operator_pass.h"
#include "runners/measure/timing.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <torch/cuda.h>

namespace transpool {
namespace {

const std::vector<PoolingShape> pooling_shapes = {
    {.batch = 2, .length = 500, .width = 64, .pooled_length = 33},
    {.batch = 4, .length = 1024, .width = 128, .pooled_length = 128},
    {.batch = 16, .length = 8192, .width = 512, .pooled_length = 512},
};

const std::vector<AttentionShape> attention_shapes = {
    {.batch = 2, .heads = 2, .queries = 200, .keys = 200, .head_width = 32},
    {.batch = 4, .heads = 4, .queries = 1024, .keys = 1024, .head_width = 32},
};

std::string shape_name(const PoolingShape& s) {
  return fmt::format("{}x{}to{}x{}", s.batch, s.length, s.pooled_length, s.width);
}

std::string shape_name(const AttentionShape& s) {
  return fmt::format("{}x{}x{}x{}", s.batch, s.heads, s.queries, s.head_width);
}

void check_support(const PoolingVariant& variant, const PoolingShape& shape, const std::string& device) {
  check_pooling_support(variant, shape, device);
}

void check_support(const AttentionVariant& variant, const AttentionShape& shape, const std::string& device) {
  check_attention_support(variant, shape, device);
}

/// Timed by the project's own clock, on inputs that are redrawn before each pass.
template <class Pass, class Variant, class Shape>
void measure(benchmark::State& state, const Variant& variant, const Shape& shape, const std::string& device, bool backward) {
  try {
    check_support(variant, shape, device);
    Pass pass;
    pass.op = variant.make(Options(variant.options, Json::object(), "option of " + variant.name, {}));
    pass.shape = shape;
    pass.device = device_from_name(device);
    pass.backward = backward;
    pass.draw();
    pass.run();
    PassClock clock(pass.device);
    for (auto step : state) {
      (void)step;
      pass.draw();
      state.SetIterationTime(clock.time([&] { pass.run(); }) / 1e3);
    }
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

/// KIND/VARIANT/forward or forward+backward/SHAPE/DEVICE for every registered variant with its default options.
template <class Pass, class Variant, class Shape>
void add_cases(const Registry<Variant>& registry, const std::vector<Shape>& shapes, const std::string& device) {
  for (const auto& [name, variant] : registry.all())
    for (const bool backward : {false, true}) {
      if (backward && !variant.capabilities.differentiable) continue;
      for (const auto& shape : shapes) {
        const auto label = fmt::format("{}/{}/{}/{}/{}", registry.kind(), name, backward ? "forward+backward" : "forward",
                                       shape_name(shape), device);
        const auto run = [&variant = variant, shape, device, backward](benchmark::State& state) {
          measure<Pass>(state, variant, shape, device, backward);
        };
        benchmark::RegisterBenchmark(label.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
      }
    }
}

}  // namespace
}  // namespace transpool

int main(int count, char** values) {
  using namespace transpool;
  benchmark::Initialize(&count, values);
  if (benchmark::ReportUnrecognizedArguments(count, values)) return 2;
  std::vector<std::string> devices = {"cpu"};
  if (torch::cuda::is_available()) devices.emplace_back("cuda");
  for (const auto& device : devices) {
    add_cases<PoolingPass>(pooling_registry(), pooling_shapes, device);
    add_cases<AttentionPass>(attention_registry(), attention_shapes, device);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
