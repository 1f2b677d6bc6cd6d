#include "runners/report/compare.h"
#include "runners/cli/command.h"

#include <iostream>
#include <sstream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

int run_compare(const std::vector<std::string>& given) {
  po::options_description options("Options");
  options.add_options()                                                                              //
      ("base", po::value<std::string>(), "the report to compare with, or the folder that holds it")  //
      ("new", po::value<std::string>(), "the report to judge")                                       //
      ("format", po::value<std::string>()->default_value("text"), "text, md, csv or json")           //
      ("metrics", po::value<std::string>()->default_value(""), "summaries to compare, m1,m2 (default: all)");
  const auto arguments = parse("compare", options, {"base", "new"}, given);
  if (arguments.help_printed) return done;
  if (!arguments.has("base") || !arguments.has("new"))
    throw UsageError("compare needs two reports, BASE NEW; see transpool compare --help");
  std::vector<std::string> metrics;
  std::istringstream names(arguments.get<std::string>("metrics"));
  for (std::string name; std::getline(names, name, ',');) metrics.push_back(name);
  const auto base = read_report(arguments.get<std::string>("base"));
  const auto current = read_report(arguments.get<std::string>("new"));
  const auto comparison = compare_reports(base, current, metrics);
  std::cout << print_comparison(comparison, arguments.get<std::string>("format")) << std::flush;
  return comparison.regressed() ? found_problem : done;
}

const RegisterCommand command{
    {"compare", "BASE NEW [--format text|md|csv|json] [--metrics m1,m2]",
     "SAME, FAST, SLOW or AMBG for each cell and metric of two reports; exit code 1 on a regression", run_compare}};

}  // namespace
}  // namespace transpool::cli
