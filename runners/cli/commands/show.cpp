#include "runners/report/show.h"

#include "runners/cli/command.h"

#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

int run_show(const std::vector<std::string>& given) {
  po::options_description options("Options");
  options.add_options()                                                                   //
      ("report", po::value<std::string>(), "a report.json, or the folder that holds it")  //
      ("record", po::value<std::string>(), "the id of a record, or the beginning of one");
  const auto arguments = parse("show", options, {"report", "record"}, given);
  if (arguments.help_printed) return done;
  if (!arguments.has("report")) throw UsageError("no REPORT is given; see transpool show --help");
  const auto& path = arguments.get<std::string>("report");
  const auto report = read_report(path);
  if (arguments.has("record"))
    std::cout << show_record(report, find_record(report, arguments.get<std::string>("record")), path);
  else std::cout << list_records(report, path);
  std::cout << std::flush;
  return done;
}

const RegisterCommand command{
    {"show", "REPORT [RECORD]", "one record in full, with the command that re-runs it; or all in a list", run_show}};

}  // namespace
}  // namespace transpool::cli
