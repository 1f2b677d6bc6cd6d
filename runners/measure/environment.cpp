#include "runners/measure/environment.h"

#include "build_information.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/hash.h>
#include <torch/cuda.h>
#include <torch/version.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <memory>

namespace transpool {
namespace {

std::string processor_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

/// Output of a command, or "" where it cannot run.
std::string output_of(const char* command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command, "r"), &pclose);
  if (!pipe) return "";
  std::string text;
  std::array<char, 256> buffer{};
  while (std::fgets(buffer.data(), buffer.size(), pipe.get()) != nullptr) text += buffer.data();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Json describe_gpu() {
  const auto text = output_of(
      "nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks_throttle_reasons.active,"
      "temperature.gpu,power.draw --format=csv,noheader -i 0 2>/dev/null");
  Json gpu = Json::object();
  const char* keys[] = {"name", "driver", "memory", "sm_clock", "memory_clock", "throttle_reasons", "temperature", "power"};
  std::size_t start = 0;
  for (const auto* key : keys) {
    const auto end = text.find(", ", start);
    gpu[key] = text.substr(start, end == std::string::npos ? end : end - start);
    if (end == std::string::npos) break;
    start = end + 2;
  }
  return gpu;
}

}  // namespace

Json describe_environment(const std::string& device) {
  Json environment = {{"commit", TRANSPOOL_COMMIT},       {"build_type", TRANSPOOL_BUILD_TYPE},
                      {"compiler", TRANSPOOL_COMPILER},   {"flags", TRANSPOOL_FLAGS},
                      {"libtorch", TORCH_VERSION},        {"cuda", TRANSPOOL_CUDA_VERSION},
                      {"cpu", processor_model()},         {"cpu_capability", at::get_cpu_capability()},
                      {"threads", at::get_num_threads()}, {"device", device}};
  if (device == "cuda" && torch::cuda::is_available()) {
    environment["gpu"] = describe_gpu();
    environment["cudnn"] = at::detail::getCUDAHooks().versionCuDNN();
  }
  return environment;
}

std::string environment_key(const Json& environment) {
  Json stable = environment;
  if (stable.contains("gpu"))
    for (const auto* key : {"sm_clock", "memory_clock", "throttle_reasons", "temperature", "power"})
      stable["gpu"].erase(key);
  return c10::sha1(stable.dump()).str().substr(0, 8);
}

}  // namespace transpool
