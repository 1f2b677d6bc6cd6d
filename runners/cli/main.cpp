#include "runners/cli/command.h"

#include <fmt/format.h>

#include <iostream>

namespace {

void print_overview() {
  std::cout
      << "transpool: benchmarks and ablations of long-sequence Transformers\n\nusage: transpool COMMAND [ARGUMENTS]\n\n";
  for (const auto& command : transpool::cli::commands())
    if (!command.hidden) std::cout << fmt::format("  {:<10} {}\n", command.name, command.summary);
  std::cout << "\ntranspool COMMAND --help says more.\n";
}

}  // namespace

int main(int count, char** values) {
  using namespace transpool::cli;
  const std::vector<std::string> arguments(values + 1, values + count);
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h" || arguments[0] == "help") {
    print_overview();
    return arguments.empty() ? usage_error : done;
  }
  try {
    return find_command(arguments[0]).run({arguments.begin() + 1, arguments.end()});
  } catch (const transpool::UsageError& error) {
    std::cerr << error.what() << "\n";
    return usage_error;
  } catch (const std::exception& error) {
    std::cerr << "transpool " << arguments[0] << ": " << error.what() << "\n";
    return found_problem;
  }
}
