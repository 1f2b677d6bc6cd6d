#include "runners/cli/command.h"

#include <fmt/format.h>
#include <algorithm>
#include <iostream>
#include <utility>

namespace transpool::cli {
namespace {

std::vector<Command>& mutable_commands() {
  static std::vector<Command> all;
  return all;
}

namespace po = boost::program_options;

std::string nearest_flag(const po::options_description& options, const std::string& given) {
  std::vector<std::string> known;
  for (const auto& option : options.options()) known.push_back("--" + option->long_name());
  return unknown_name_message("option", given, known);
}

}  // namespace

RegisterCommand::RegisterCommand(Command command) {
  auto& all = mutable_commands();
  all.push_back(std::move(command));
  std::sort(all.begin(), all.end(), [](const Command& a, const Command& b) { return a.name < b.name; });
}

const std::vector<Command>& commands() { return mutable_commands(); }

const Command& find_command(const std::string& name) {
  std::vector<std::string> known;
  for (const auto& command : commands()) {
    if (command.name == name) return command;
    if (!command.hidden) known.push_back(command.name);
  }
  throw UsageError(unknown_name_message("command", name, known));
}

Arguments parse(const std::string& command, po::options_description options, const std::vector<std::string>& positional,
                const std::vector<std::string>& arguments) {
  options.add_options()("help,h", "this text");
  po::positional_options_description places;
  for (auto name : positional) {
    const bool rest = name.size() > 3 && name.ends_with("...");
    if (rest) name.resize(name.size() - 3);
    places.add(name.c_str(), rest ? -1 : 1);
  }
  Arguments parsed;
  try {
    po::store(po::command_line_parser(arguments).options(options).positional(places).run(), parsed.values);
    if (parsed.values.count("help") != 0) {
      const auto& self = find_command(command);
      std::cout << fmt::format("transpool {} {}\n{}\n\n", self.name, self.synopsis, self.summary) << options;
      parsed.help_printed = true;
      return parsed;
    }
    po::notify(parsed.values);
  } catch (const po::unknown_option& error) {
    throw UsageError(fmt::format("transpool {}: {}", command, nearest_flag(options, error.get_option_name())));
  } catch (const po::error& error) {
    throw UsageError(fmt::format("transpool {}: {}; see transpool {} --help", command, error.what(), command));
  }
  return parsed;
}

}  // namespace transpool::cli
