#include "operators/tensor.h"
#include "runners/cli/command.h"
#include "runners/measure/ceilings.h"
#include "runners/measure/device.h"
#include "runners/measure/environment.h"

#include <fmt/format.h>
#include <torch/cuda.h>
#include <unistd.h>

#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

struct Finding {
  std::string what;
  bool good;
  std::string detail;
  std::string remedy;
};

bool command_works(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

std::vector<Finding> examine(const Json& environment) {
  std::vector<Finding> findings;
  const bool release = environment["build_type"] == "Release";
  findings.push_back({"build", release, environment["build_type"].get<std::string>(),
                      "numbers count only from a Release build: cmake --preset release"});
  findings.push_back({"CPU", true,
                      fmt::format("{}, {} threads, {}", environment["cpu"].get<std::string>(),
                                  environment["threads"].get<int>(), environment["cpu_capability"].get<std::string>()),
                      ""});
  const bool cuda = torch::cuda::is_available();
  findings.push_back({"CUDA device", cuda, cuda ? environment["gpu"].value("name", "present") : "none found",
                      "runs with --device cuda need one; --device cpu works"});
  if (cuda && environment["gpu"].contains("throttle_reasons")) {
    const auto reasons = environment["gpu"]["throttle_reasons"].get<std::string>();
    const bool idle = reasons == "0x0000000000000000" || reasons == "0x0000000000000001";
    findings.push_back({"GPU clocks", idle, environment["gpu"].value("sm_clock", "") + ", throttle reasons " + reasons,
                        "the GPU is throttled: times will vary; wait until it is cool and unshared"});
  }
  double load[1] = {0};
  getloadavg(load, 1);
  const bool quiet = load[0] < 0.5 * environment["threads"].get<double>();
  findings.push_back(
      {"machine load", quiet, fmt::format("{:.2f}", load[0]), "other programs are running: times will be noisy"});
  const bool plots = command_works("${TRANSPOOL_PYTHON:-python3} -c 'import matplotlib'");
  findings.push_back({"figures", plots, plots ? "matplotlib found" : "no matplotlib in ${TRANSPOOL_PYTHON:-python3}",
                      "transpool plot needs it: scripts/setup, or set TRANSPOOL_PYTHON"});
  return findings;
}

/// What rooflines are drawn under, measured here and now.
Json measure_ceilings(const at::Device& device) {
  Json found = Json::object();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto& reached = measured_ceilings(device, dtype);
    found["copy_bytes_per_second"] = reached.copy_bytes_per_second;
    found["product_flops_per_second"][dtype_name(dtype)] = reached.product_flops_per_second;
  }
  return found;
}

int doctor(const std::vector<std::string>& arguments) {
  po::options_description options("options");
  options.add_options()("json", "as JSON")("ceilings", "also measures copy bandwidth and matrix product");
  const auto parsed = parse("doctor", options, {}, arguments);
  if (parsed.help_printed) return done;
  const std::string device = torch::cuda::is_available() ? "cuda" : "cpu";
  auto environment = describe_environment(device);
  const auto findings = examine(environment);
  if (parsed.has("ceilings")) environment["ceilings"] = measure_ceilings(device_from_name(device));
  Json list = Json::array();
  for (const auto& finding : findings)
    list.push_back({{"what", finding.what},
                    {"good", finding.good},
                    {"detail", finding.detail},
                    {"remedy", finding.good ? "" : finding.remedy}});
  if (parsed.has("json")) {
    std::cout << Json{{"environment", environment}, {"findings", list}}.dump(2) << "\n";
    return done;
  }
  for (const auto& item : environment.items())
    if (!item.value().is_object())
      std::cout << fmt::format("{:<16} {}\n", item.key(),
                               item.value().is_string() ? item.value().get<std::string>() : item.value().dump());
  if (parsed.has("ceilings")) {
    const auto& reached = environment["ceilings"];
    std::cout << fmt::format("{:<16} {:.4g} GB/s\n", "copy", reached["copy_bytes_per_second"].get<double>() / 1e9);
    for (const auto& [dtype, rate] : reached["product_flops_per_second"].items())
      std::cout << fmt::format("{:<16} {:.4g} TFLOP/s in {}\n", "matrix product", rate.get<double>() / 1e12, dtype);
  }
  std::cout << "\n";
  for (const auto& finding : findings)
    std::cout << fmt::format("[{}] {:<14} {}{}\n", finding.good ? "ok" : "--", finding.what, finding.detail,
                             finding.good ? "" : "\n       " + finding.remedy);
  return done;
}

const RegisterCommand registration({"doctor", "[--json] [--ceilings]",
                                    "what this machine can run and measure, and what to do about the rest", doctor});

}  // namespace
}  // namespace transpool::cli
