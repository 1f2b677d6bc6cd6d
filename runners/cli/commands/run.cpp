#include "runners/sweep/run.h"
#include "runners/cli/command.h"
#include "runners/cli/plugin.h"
#include "runners/measure/device.h"
#include "runners/sweep/worker.h"

#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

int run(const std::vector<std::string>& arguments) {
  po::options_description options("options");
  options.add_options()("experiment", po::value<std::string>()->required(), "experiment file")(
      "out", po::value<std::string>(), "folder of the report; default: out/NAME of the experiment")(
      "set", po::value<std::vector<std::string>>()->default_value({}, ""),
      "PATH=VALUES: replaces a value, or an axis's list or range")("resume", "goes on where an earlier run stopped")(
      "dry-run", "prints the plan and runs nothing")("device", po::value<std::string>()->default_value("cpu"),
                                                     "cpu or cuda")(
      "plugin", po::value<std::vector<std::string>>()->default_value({}, ""), "shared library with further variants");
  const auto parsed = parse("run", options, {"experiment"}, arguments);
  if (parsed.help_printed) return done;
  const auto plugins = parsed.get<std::vector<std::string>>("plugin");
  load_plugins(plugins);
  const auto device = parsed.get<std::string>("device");
  device_from_name(device);
  const auto experiment =
      read_experiment(parsed.get<std::string>("experiment"), parsed.get<std::vector<std::string>>("set"), device);
  if (parsed.has("dry-run")) {
    std::cout << describe_plan(experiment);
    return done;
  }
  RunOptions how;
  how.out = parsed.has("out") ? parsed.get<std::string>("out") : "out/" + experiment.name;
  how.resume = parsed.has("resume");
  how.program = "/proc/self/exe";
  how.worker_arguments = {"worker"};
  for (const auto& plugin : plugins) how.worker_arguments.insert(how.worker_arguments.end(), {"--plugin", plugin});
  const int code = run_experiment(experiment, how);
  if (code != interrupted) std::cout << (how.out / "report.json").string() << "\n";
  return code;
}

int serve(const std::vector<std::string>& arguments) {
  po::options_description options("options");
  options.add_options()("plugin", po::value<std::vector<std::string>>()->default_value({}, ""),
                        "shared library with further variants");
  const auto parsed = parse("worker", options, {}, arguments);
  if (parsed.help_printed) return done;
  load_plugins(parsed.get<std::vector<std::string>>("plugin"));
  return serve_cells(/*requests=*/0, /*answers=*/3);
}

const RegisterCommand run_command(
    {"run",
     "EXPERIMENT.json [--out DIR] [--set PATH=VALUES]... [--resume] [--dry-run] [--device cpu|cuda] [--plugin FILE.so]...",
     "runs a sweep and writes its report", run});
const RegisterCommand worker_command({"worker", "", "measures the cells that `run` sends it", serve, /*hidden=*/true});

}  // namespace
}  // namespace transpool::cli
