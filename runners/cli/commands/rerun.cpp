#include "runners/sweep/rerun.h"
#include "runners/cli/command.h"
#include "runners/cli/plugin.h"
#include "runners/measure/device.h"
#include "runners/measure/environment.h"
#include "runners/report/compare.h"
#include "runners/report/show.h"
#include "runners/sweep/run.h"
#include "runners/sweep/worker.h"

#include <csignal>
#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

volatile std::sig_atomic_t interrupt_seen = 0;

/// The record of a fresh measurement; nothing where Ctrl-C came first.
std::optional<Record> measure_again(const Cell& cell, const std::vector<std::string>& plugins) {
  std::vector<std::string> arguments = {"worker"};
  for (const auto& plugin : plugins) arguments.insert(arguments.end(), {"--plugin", plugin});
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupt_seen = 1; });
  Worker worker("/proc/self/exe", arguments);
  return worker.measure(cell, cell.values.real("timeout_seconds"), [] { return interrupt_seen != 0; });
}

/// Both runs of the record as reports of one record each, ready to be compared.
std::pair<Report, Report> before_and_after(const Report& report, const Record& old, const Record& measured) {
  Report before = report;
  before.records = {old};
  Report after;
  after.environment = describe_environment(old.configuration["device"].get<std::string>());
  after.records = {measured};
  after.records[0].environment = environment_key(after.environment);
  after.environments[after.records[0].environment] = after.environment;
  return {before, after};
}

/// Measures, writes the new report where `out` names a folder, prints the comparison.
int measure_and_compare(const Report& report, const Record& old, const Experiment& experiment, const std::string& out,
                        const std::vector<std::string>& plugins, const std::string& format) {
  const auto& cell = experiment.cells.front();
  device_from_name(cell.device);
  if (!cell.skip_reason.empty()) throw UsageError("the record cannot be measured here: " + cell.skip_reason);
  std::optional<RunFolder> folder;
  if (!out.empty()) {
    RunOptions how;
    how.out = out;
    folder.emplace(experiment, how);
  }
  if (cell.id != old.id)
    std::cerr << "the id is now " << cell.id << ": this program has settings or options that the report does not know; "
              << "they stand at their defaults\n";
  const auto measured = measure_again(cell, plugins);
  if (!measured) return interrupted;
  if (folder) folder->add(*measured);
  const auto [before, after] = before_and_after(report, old, *measured);
  const auto comparison = compare_reports(before, after);
  std::cout << print_comparison(comparison, format) << std::flush;
  return comparison.regressed() || measured->status != Status::ok ? found_problem : done;
}

int rerun(const std::vector<std::string>& given) {
  po::options_description options("Options");
  options.add_options()                                                                     //
      ("report", po::value<std::string>(), "a report.json, or the folder that holds it")    //
      ("record", po::value<std::string>(), "the id of a record, or the beginning of one")   //
      ("out", po::value<std::string>(), "folder for a report of the new measurement")       //
      ("format", po::value<std::string>()->default_value("text"), "text, md, csv or json")  //
      ("plugin", po::value<std::vector<std::string>>()->default_value({}, ""), "shared library with further variants");
  const auto arguments = parse("rerun", options, {"report", "record"}, given);
  if (arguments.help_printed) return done;
  if (!arguments.has("report") || !arguments.has("record"))
    throw UsageError("rerun needs REPORT RECORD; transpool show REPORT lists the records");
  const auto& plugins = arguments.get<std::vector<std::string>>("plugin");
  load_plugins(plugins);
  const auto& path = arguments.get<std::string>("report");
  const auto& format = arguments.get<std::string>("format");
  const auto report = read_report(path);
  const auto& old = find_record(report, arguments.get<std::string>("record"));
  print_comparison({}, format);  // an unknown format must not cost a measurement
  const auto out = arguments.has("out") ? arguments.get<std::string>("out") : std::string();
  return measure_and_compare(report, old, rerun_experiment(report, old, path), out, plugins, format);
}

const RegisterCommand command{{"rerun", "REPORT RECORD [--out DIR] [--format text|md|csv|json] [--plugin FILE.so]...",
                               "measures exactly that record again and compares; exit code 1 where it fails or got worse",
                               rerun}};

}  // namespace
}  // namespace transpool::cli
