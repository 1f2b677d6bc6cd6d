#include "runners/measure/device.h"
#include "runners/measure/operator_pass.h"
#include "runners/measure/timing.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <torch/cuda.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>

namespace transpool {
namespace {

std::vector<PoolingShape> pooling_shapes(const std::string& device) {
  std::vector<PoolingShape> shapes = {
      {.batch = 2, .length = 500, .width = 64, .pooled_length = 33},
      {.batch = 4, .length = 1024, .width = 128, .pooled_length = 128},
      {.batch = 16, .length = 8192, .width = 512, .pooled_length = 512},
  };
  if (device != "cuda") return shapes;
  shapes.push_back({.batch = 16, .length = 8192, .width = 512, .pooled_length = 512, .dtype = at::kBFloat16});
  shapes.push_back({.batch = 1, .length = 8192, .width = 512, .pooled_length = 512});
  shapes.push_back({.batch = 64, .length = 2048, .width = 512, .pooled_length = 512});
  return shapes;
}

std::vector<AttentionShape> attention_shapes(const std::string& device) {
  std::vector<AttentionShape> shapes = {
      {.batch = 2, .heads = 2, .queries = 200, .keys = 200, .head_width = 32},
      {.batch = 4, .heads = 4, .queries = 1024, .keys = 1024, .head_width = 32},
  };
  if (device == "cuda")
    shapes.push_back({.batch = 1, .heads = 8, .queries = 8192, .keys = 8192, .head_width = 64, .dtype = at::kBFloat16});
  return shapes;
}

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

/// Timed by the project's own clock, on inputs that are redrawn before each pass. Google Benchmark shows the mean; the
/// counter `median_ms` is the figure of reports, and `host_bound` the share of passes that waited for the host.
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
    for (int i = 0; i < 3; ++i) pass.run();
    PassClock clock(pass.device, /*head_start=*/true);
    std::vector<double> samples;
    for (auto step : state) {
      (void)step;
      pass.draw();
      samples.push_back(clock.time([&] { pass.run(); }));
      state.SetIterationTime(samples.back() / 1e3);
    }
    state.counters["median_ms"] = summarize_times(samples).median;
    state.counters["host_bound"] = clock.host_bound();
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

/// KIND/VARIANT/forward or forward+backward/SHAPE/DTYPE/DEVICE for every registered variant with its default options.
template <class Pass, class Variant, class Shape>
void add_cases(const Registry<Variant>& registry, const std::vector<Shape>& shapes, const std::string& device) {
  for (const auto& [name, variant] : registry.all())
    for (const bool backward : {false, true}) {
      if (backward && !variant.capabilities.differentiable) continue;
      for (const auto& shape : shapes) {
        const auto label = fmt::format("{}/{}/{}/{}/{}/{}", registry.kind(), name, backward ? "forward+backward" : "forward",
                                       shape_name(shape), dtype_name(shape.dtype), device);
        const auto run = [&variant = variant, shape, device, backward](benchmark::State& state) {
          measure<Pass>(state, variant, shape, device, backward);
        };
        benchmark::RegisterBenchmark(label.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
      }
    }
}

/// Starts over with OpenMP threads that sleep while they wait, as workers of `transpool run` do: it is read when the library
/// is loaded. A value that the user set is kept.
void let_threads_sleep(char** values) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("OMP_WAIT_POLICY", "passive", 0);
  execv("/proc/self/exe", values);
}

int run_benchmarks(int count, char** values) {
  let_threads_sleep(values);
  benchmark::Initialize(&count, values);
  if (benchmark::ReportUnrecognizedArguments(count, values)) return 2;
  std::vector<std::string> devices = {"cpu"};
  if (torch::cuda::is_available()) devices.emplace_back("cuda");
  for (const auto& device : devices) {
    add_cases<PoolingPass>(pooling_registry(), pooling_shapes(device), device);
    add_cases<AttentionPass>(attention_registry(), attention_shapes(device), device);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace transpool

int main(int count, char** values) {
  try {
    return transpool::run_benchmarks(count, values);
  } catch (const std::exception& error) {
    std::cerr << "transpool_benchmark: " << error.what() << "\n";
    return 1;
  }
}
