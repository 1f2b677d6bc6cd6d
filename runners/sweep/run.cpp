#include "runners/sweep/run.h"

#include "runners/measure/environment.h"
#include "runners/measure/level.h"
#include "runners/sweep/worker.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <iostream>

namespace transpool {
namespace {

volatile std::sig_atomic_t interrupt_seen = 0;

/// What a record must be for --resume to keep it: an answer, not an accident.
bool settled(const Record& record) {
  return record.status != Status::crashed && record.status != Status::timeout && record.status != Status::failed;
}

/// What makes two runs the same experiment: everything but the words about it.
Json essence(const Json& experiment) {
  Json same = nlohmann::json::parse(experiment.dump());
  same.erase("description");
  return same;
}

std::string cell_label(const Cell& cell) {
  std::string text;
  for (const auto& axis : cell.axes.items()) {
    const auto& value = axis.value();
    text += (text.empty() ? "" : ", ") + axis.key() + "=" + (value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text + (text.empty() ? "" : ", ") + fmt::format("seed={}", cell.seed);
}

std::string duration(double seconds) {
  return seconds < 90 ? fmt::format("{:.0f} s", seconds)
                      : fmt::format("{:.0f} min {:02.0f} s", std::floor(seconds / 60), std::fmod(seconds, 60));
}

/// A bar that is redrawn on a terminal, plain lines else.
class Progress {
 public:
  explicit Progress(std::size_t cells)
      : cells_(cells), terminal_(isatty(2) == 1), start_(std::chrono::steady_clock::now()) {}

  void begin(std::size_t index, const Cell& cell) {
    const std::size_t width = 24;
    const auto filled = width * index / std::max<std::size_t>(1, cells_);
    const auto eta = measured_ == 0
                         ? std::string("?")
                         : duration(elapsed() / static_cast<double>(measured_) * static_cast<double>(cells_ - index));
    if (terminal_)
      std::cerr << fmt::format("\r\033[K[{}{}] {}/{} eta {}  {}", std::string(filled, '#'), std::string(width - filled, '.'),
                               index, cells_, eta, cell_label(cell))
                << std::flush;
    else std::cerr << fmt::format("cell {}/{}: {}\n", index + 1, cells_, cell_label(cell));
  }

  void end(std::size_t index, const Cell& cell, const Record& record) {
    ++measured_;
    const auto reason = record.reason.empty() ? "" : ": " + record.reason;
    std::cerr << (terminal_ ? "\r\033[K" : "")
              << fmt::format("cell {}/{}: {} {} in {}{}\n", index + 1, cells_, cell_label(cell), to_string(record.status),
                             duration(record.seconds), reason);
  }

 private:
  double elapsed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  std::size_t cells_;
  std::size_t measured_ = 0;
  bool terminal_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

RunFolder::RunFolder(const Experiment& experiment, const RunOptions& options) : out_(options.out) {
  for (const auto& cell : experiment.cells) plan_.push_back(cell.id);
  report_.experiment = experiment.resolved;
  const auto report_file = out_ / "report.json";
  const bool exists = std::filesystem::exists(report_file);
  if (exists) {
    const auto before = read_report(report_file);
    if (essence(before.experiment) != essence(experiment.resolved))
      Where(report_file.string())
          .fail(fmt::format("holds experiment {} with other settings; allowed: a new or empty --out folder, or the same "
                            "experiment with --resume",
                            before.experiment.value("name", Json("?")).dump()));
    if (!options.resume) Where(report_file.string()).fail("is there already; allowed: --resume, or a new --out folder");
    report_.environments = before.environments;
  }
  std::filesystem::create_directories(out_);
  lock_ = open((out_ / "lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (lock_ < 0 || flock(lock_, LOCK_EX | LOCK_NB) != 0)
    Where(out_.string()).fail("another run is writing here; allowed: another --out folder");
  report_.environment = describe_environment(experiment.cells.front().device);
  report_.environments[environment_key(report_.environment)] = report_.environment;
  const auto records = out_ / "records.jsonl";
  if (options.resume) restore(records);
  // Rewritten whole, so that a line cut off by a kill and records to be measured again are gone before the first append.
  std::string kept;
  for (const auto& [id, record] : records_) kept += to_json(record).dump() + "\n";
  write_atomically(records, kept);
  log_ = open(records.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (log_ < 0) Where(records.string()).fail("cannot be written");
  write();
}

RunFolder::~RunFolder() {
  if (log_ >= 0) close(log_);
  if (lock_ >= 0) close(lock_);
}

void RunFolder::restore(const std::filesystem::path& records) {
  std::ifstream file(records);
  for (std::string line; std::getline(file, line);) {
    const auto json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) continue;  // the last line of a killed run
    const auto record = record_from_json(json);
    const bool planned = std::find(plan_.begin(), plan_.end(), record.id) != plan_.end();
    if (planned && settled(record)) records_[record.id] = record;
  }
}

const Record* RunFolder::find(const std::string& id) const {
  const auto found = records_.find(id);
  return found == records_.end() ? nullptr : &found->second;
}

void RunFolder::add(const Record& measured) {
  auto record = measured;
  record.environment = environment_key(report_.environment);
  const auto line = to_json(record).dump() + "\n";
  if (::write(log_, line.data(), line.size()) != static_cast<ssize_t>(line.size()) || fsync(log_) != 0)
    throw std::runtime_error("records.jsonl cannot be written");
  records_[record.id] = record;
  write();
}

void RunFolder::write() {
  report_.records.clear();
  for (const auto& id : plan_)
    if (const auto* record = find(id)) report_.records.push_back(*record);
  write_report(out_ / "report.json", report_);
}

int run_experiment(const Experiment& experiment, const RunOptions& options) {
  RunFolder folder(experiment, options);
  interrupt_seen = 0;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupt_seen = 1; });
  const auto interrupted = [] { return interrupt_seen != 0; };
  Worker worker(options.program, options.worker_arguments);
  Progress progress(experiment.cells.size());
  bool all_ok = true;
  for (std::size_t i = 0; i < experiment.cells.size(); ++i) {
    const auto& cell = experiment.cells[i];
    if (const auto* done = folder.find(cell.id)) {
      all_ok = all_ok && done->status == Status::ok;
      continue;
    }
    progress.begin(i, cell);
    const auto record = cell.skip_reason.empty() ? worker.measure(cell, cell.values.real("timeout_seconds"), interrupted)
                                                 : std::optional(measure_cell(cell));
    if (!record) {
      std::cerr << "\ninterrupted; the finished cells are in " << (options.out / "report.json").string()
                << ", --resume goes on\n";
      return 130;
    }
    folder.add(*record);
    progress.end(i, cell, *record);
    all_ok = all_ok && (record->status == Status::ok || record->status == Status::unsupported);
  }
  return all_ok ? 0 : 1;
}

std::string describe_plan(const Experiment& experiment) {
  std::string text = fmt::format("{}: {} cells at level {}\n", experiment.name, experiment.cells.size(), experiment.level);
  for (const auto& cell : experiment.cells)
    text += fmt::format("  {}  {}{}\n", cell.id, cell_label(cell),
                        cell.skip_reason.empty() ? estimate_text(cell) : "  skipped: " + cell.skip_reason);
  for (const auto& left_out : experiment.left_out) text += fmt::format("  left out by \"where\": {}\n", left_out);
  return text;
}

}  // namespace transpool
