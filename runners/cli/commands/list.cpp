#include "operators/registry.h"
#include "runners/cli/command.h"
#include "runners/cli/plugin.h"
#include "runners/data/dataset.h"
#include "runners/data/tokenizer.h"
#include "runners/sweep/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

const std::vector<std::string> kinds = {"attention", "pooling", "scorer",     "encoder", "dataset",
                                        "tokenizer", "setting", "experiment", "metric"};

Json option_list(const std::vector<OptionSpec>& specs) {
  Json list = Json::array();
  for (const auto& spec : specs) list.push_back(to_json(spec));
  return list;
}

template <class Entries>
Json describe_entries(const Entries& entries) {
  Json list = Json::array();
  for (const auto& [name, entry] : entries)
    list.push_back({{"name", name}, {"description", entry.description}, {"options", option_list(entry.options)}});
  return list;
}

/// The folder of experiments beside the program: in a bundle, in a build tree, or here.
std::filesystem::path experiments_folder() {
  auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  for (; folder.has_relative_path(); folder = folder.parent_path())
    if (std::filesystem::is_directory(folder / "experiments")) return folder / "experiments";
  return "experiments";
}

Json describe_experiments() {
  Json list = Json::array();
  const auto folder = experiments_folder();
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_directory(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    std::ifstream stream(file);
    const auto json = Json::parse(stream, nullptr, false);
    list.push_back(
        {{"name", file.stem().string()}, {"description", json.is_object() ? json.value("description", "") : "not JSON"}});
  }
  return list;
}

Json describe_kind(const std::string& kind) {
  if (kind == "experiment") return describe_experiments();
  if (kind == "dataset") return describe_entries(datasets());
  if (kind == "tokenizer") return describe_entries(tokenizers());
  if (kind == "metric") {
    Json list = Json::array();
    for (const auto& name : measure_names()) list.push_back({{"name", name}, {"description", "value of \"measure\""}});
    return list;
  }
  if (kind == "setting") {
    Json list = Json::array();
    for (const auto& setting : settings()) {
      auto json = to_json(setting.spec);
      json["description"] = setting.spec.meaning;
      json["levels"] = setting.levels.empty() ? level_names() : setting.levels;
      list.push_back(json);
    }
    return list;
  }
  const auto& registry = *catalogue().at(kind);
  Json list = Json::array();
  for (const auto& name : registry.names()) list.push_back(registry.describe(name));
  return list;
}

void print(const std::string& kind, const Json& list) {
  std::cout << kind << "\n";
  for (const auto& item : list) {
    std::cout << fmt::format("  {:<28} {}\n", item["name"].get<std::string>(), item.value("description", ""));
    if (item.contains("options"))
      for (const auto& option : item["options"])
        std::cout << fmt::format("      {:<24} {} (default {}; {})\n", option["name"].get<std::string>(),
                                 option["meaning"].get<std::string>(), option["default"].dump(),
                                 option["allowed"].get<std::string>());
  }
}

int list(const std::vector<std::string>& arguments) {
  po::options_description options("options");
  options.add_options()("kind", po::value<std::string>(),
                        "attention, pooling, scorer, encoder, dataset, tokenizer, setting, experiment or metric")(
      "json", "as JSON")("plugin", po::value<std::vector<std::string>>()->default_value({}, ""),
                         "shared library with further variants");
  const auto parsed = parse("list", options, {"kind"}, arguments);
  if (parsed.help_printed) return done;
  load_plugins(parsed.get<std::vector<std::string>>("plugin"));
  std::vector<std::string> wanted = kinds;
  if (parsed.has("kind")) {
    wanted = {parsed.get<std::string>("kind")};
    if (std::find(kinds.begin(), kinds.end(), wanted[0]) == kinds.end())
      throw UsageError("transpool list: " + unknown_name_message("kind", wanted[0], kinds));
  }
  Json all = Json::object();
  for (const auto& kind : wanted) all[kind] = describe_kind(kind);
  if (parsed.has("json")) std::cout << all.dump(2) << "\n";
  else
    for (const auto& item : all.items()) print(item.key(), item.value());
  return done;
}

const RegisterCommand registration(
    {"list", "[attention|pooling|scorer|encoder|dataset|tokenizer|setting|experiment|metric] [--json] [--plugin FILE.so]...",
     "what there is, with options and defaults", list});

}  // namespace
}  // namespace transpool::cli
