#pragma once

#include "operators/error.h"

#include <boost/program_options.hpp>
#include <functional>
#include <string>
#include <vector>

namespace transpool::cli {

/// Exit codes of every command.
enum ExitCode { done = 0, found_problem = 1, usage_error = 2, interrupted = 130 };

/// One subcommand of `transpool`. It lives in a file of its own under commands/ and registers itself.
struct Command {
  std::string name;
  std::string synopsis;  ///< "EXPERIMENT.json [--out DIR] ..."
  std::string summary;   ///< one line
  /// Gets the arguments after the command's name; returns an ExitCode. Throws UsageError for exit code 2.
  std::function<int(const std::vector<std::string>& arguments)> run;
  bool hidden = false;
};

struct RegisterCommand {
  explicit RegisterCommand(Command command);
};

const std::vector<Command>& commands();
const Command& find_command(const std::string& name);

/// Parses a command's arguments. An unknown flag, a missing or malformed value is a UsageError that names the flag and
/// the nearest known one. `--help` is added and answered: then `help_printed` is true.
struct Arguments {
  boost::program_options::variables_map values;
  bool help_printed = false;

  bool has(const std::string& name) const { return values.count(name) != 0; }
  template <class T>
  const T& get(const std::string& name) const {
    return values[name].as<T>();
  }
};

/// `positional` names the options that take positional arguments, in order; the last may end in "..." to take the rest.
Arguments parse(const std::string& command, boost::program_options::options_description options,
                const std::vector<std::string>& positional, const std::vector<std::string>& arguments);

}  // namespace transpool::cli
