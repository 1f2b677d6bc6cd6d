#include "runners/cli/command.h"
#include "runners/measure/device.h"
#include "runners/measure/memory.h"
#include "runners/report/report.h"
#include "runners/train/trainer.h"

#include <fmt/format.h>

#include <filesystem>
#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

int train(const std::vector<std::string>& arguments) {
  po::options_description options("options");
  options.add_options()("config", po::value<std::string>()->required(),
                        "experiment file of level quality with exactly one cell")(
      "out", po::value<std::string>()->required(), "folder of the checkpoint")(
      "resume", "goes on from the checkpoint in --out")("set", po::value<std::vector<std::string>>()->default_value({}, ""),
                                                        "PATH=VALUE: replaces a value")(
      "device", po::value<std::string>()->default_value("cpu"), "cpu or cuda")(
      "save-every", po::value<int>()->default_value(500), "updates between checkpoints");
  const auto parsed = parse("train", options, {"config"}, arguments);
  if (parsed.help_printed) return done;
  const auto device = parsed.get<std::string>("device");
  device_from_name(device);
  const std::string config = parsed.get<std::string>("config");
  const auto experiment = read_experiment(config, parsed.get<std::vector<std::string>>("set"), device);
  if (experiment.level != "quality" || experiment.cells.size() != 1)
    throw UsageError(fmt::format("{}: {} cells at level {} cannot be trained; allowed: one cell at level quality", config,
                                 experiment.cells.size(), experiment.level));
  const std::filesystem::path out = parsed.get<std::string>("out");
  const bool resume = parsed.has("resume");
  if (std::filesystem::exists(out / "training.json") && !resume)
    throw UsageError(out.string() + ": holds a checkpoint; allowed: --resume, or another --out");
  const auto& cell = experiment.cells.front();
  const auto data = load_training_data(cell, Where(config));
  Trainer trainer(cell, data);
  if (resume) trainer.resume(out);
  std::filesystem::create_directories(out);
  const int every = std::max(1, parsed.get<int>("save-every"));
  trainer.train([&](const TrainingProgress& progress) {
    if (progress.step % 10 == 0) std::cerr << fmt::format("step {}  loss {:.4f}\n", progress.step, progress.loss);
    if (progress.step % every == 0) trainer.save(out);
  });
  trainer.save(out);
  std::cout << fmt::format("{}: {} steps, validation token accuracy {:.1f} %\n", out.string(), trainer.step(),
                           100 * token_accuracy(trainer.model(), data.validation, cell));
  return done;
}

const RegisterCommand registration({"train", "CONFIG.json --out DIR [--resume] [--set PATH=VALUE]... [--device cpu|cuda]",
                                    "trains one model and keeps its checkpoint", train});

}  // namespace
}  // namespace transpool::cli
