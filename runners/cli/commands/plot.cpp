#include "runners/cli/command.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <optional>

namespace transpool::cli {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

/// The folders from the program's own upward: a build folder inside the source tree, or bin/ of a bundle.
std::vector<fs::path> folders_above_program() {
  std::vector<fs::path> folders;
  std::error_code error;
  auto folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  if (error) return folders;
  for (; folder != folder.parent_path(); folder = folder.parent_path()) folders.push_back(folder);
  return folders;
}

/// The first `folder / relative` above the program that exists.
std::optional<fs::path> find_above(const fs::path& relative) {
  for (const auto& folder : folders_above_program())
    if (fs::exists(folder / relative)) return folder / relative;
  return std::nullopt;
}

fs::path plots_folder() {
  if (const auto package = find_above("plots/transpool_plots/__main__.py")) return package->parent_path().parent_path();
  throw UsageError(
      "the folder plots/transpool_plots was found nowhere above the program; "
      "keep the program inside its source tree or bundle");
}

std::string python() {
  if (const char* chosen = std::getenv("TRANSPOOL_PYTHON"); chosen != nullptr && *chosen != '\0') return chosen;
  if (const auto own = find_above(".venv/bin/python")) return own->string();
  return "python3";
}

/// Puts the folder before whatever PYTHONPATH holds.
void prepend_python_path(const fs::path& folder) {
  const char* before = std::getenv("PYTHONPATH");
  const auto path = folder.string() + (before != nullptr && *before != '\0' ? ":" + std::string(before) : "");
  ::setenv("PYTHONPATH", path.c_str(), 1);
}

/// Becomes the Python program; returns only by throwing.
[[noreturn]] void become(const std::vector<std::string>& call) {
  std::vector<char*> words;
  for (const auto& word : call) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  std::cout << std::flush;
  ::execvp(words[0], words.data());
  throw UsageError("cannot start " + call[0] + ": " + std::strerror(errno) +
                   "; run scripts/setup, or name a Python that has matplotlib in TRANSPOOL_PYTHON");
}

int run_plot(const std::vector<std::string>& given) {
  po::options_description options("Options");
  options.add_options()                                                                                 //
      ("report", po::value<std::vector<std::string>>(), "report.json files, or folders that hold one")  //
      ("out", po::value<std::string>()->required(), "the folder for the figures and index.html");
  const auto arguments = parse("plot", options, {"report..."}, given);
  if (arguments.help_printed) return done;
  if (!arguments.has("report")) throw UsageError("no REPORT is given; see transpool plot --help");
  prepend_python_path(plots_folder());
  std::vector<std::string> call{python(), "-m", "transpool_plots", "--out", arguments.get<std::string>("out"), "--"};
  for (const auto& report : arguments.get<std::vector<std::string>>("report")) call.push_back(report);
  become(call);
}

const RegisterCommand command{
    {"plot", "REPORT... --out DIR", "figures and one self-contained HTML page from reports", run_plot}};

}  // namespace
}  // namespace transpool::cli
