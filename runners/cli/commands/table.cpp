#include "runners/report/table.h"
#include "runners/cli/command.h"

#include <iostream>
#include <sstream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

/// The names in "a,b"; an empty one is a slip of the hand worth a message.
std::vector<std::string> names(const Arguments& arguments, const std::string& option) {
  std::vector<std::string> parts;
  if (!arguments.has(option)) return parts;
  std::istringstream text(arguments.get<std::string>(option));
  for (std::string part; std::getline(text, part, ',');) {
    if (part.empty()) throw UsageError("--" + option + ": an empty name in \"" + text.str() + "\"");
    parts.push_back(part);
  }
  return parts;
}

int run_table(const std::vector<std::string>& given) {
  po::options_description options("Options");
  options.add_options()                                                                                 //
      ("report", po::value<std::vector<std::string>>(), "report.json files, or folders that hold one")  //
      ("format", po::value<std::string>()->default_value("text"), "text, md, csv, latex or json")       //
      ("rows", po::value<std::string>(), "axes that make the rows, A,B (default: those that vary)")     //
      ("columns", po::value<std::string>(), "one axis whose values stand side by side")                 //
      ("metrics", po::value<std::string>(), "summaries to show, m1,m2 (default: a choice of each kind)");
  const auto arguments = parse("table", options, {"report..."}, given);
  if (arguments.help_printed) return done;
  if (!arguments.has("report")) throw UsageError("no REPORT is given; see transpool table --help");
  TableRequest request;
  request.rows = names(arguments, "rows");
  if (arguments.has("columns")) request.columns = arguments.get<std::string>("columns");
  request.metrics = names(arguments, "metrics");
  const auto reports = read_named_reports(arguments.get<std::vector<std::string>>("report"));
  std::cout << print_table(make_table(reports, request), arguments.get<std::string>("format")) << std::flush;
  return done;
}

const RegisterCommand command{
    {"table", "REPORT... [--format text|md|csv|latex|json] [--rows A,B] [--columns C] [--metrics m1,m2]",
     "tables from reports: a row for each combination of axes, each cell with its records", run_table}};

}  // namespace
}  // namespace transpool::cli
