#pragma once

#include "runners/report/report.h"
#include "runners/sweep/experiment.h"

#include <filesystem>

namespace transpool {

struct RunOptions {
  std::filesystem::path out;
  bool resume = false;
  std::string program;                        ///< this executable, for workers
  std::vector<std::string> worker_arguments;  ///< what makes it a worker
};

/// The folder of one run: report.json (whole, replaced after each cell), records.jsonl (appended and synced), a lock.
/// Throws UsageError where the folder holds another experiment, or this one without `resume`, or another run has it.
class RunFolder {
 public:
  RunFolder(const Experiment& experiment, const RunOptions& options);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const Record* find(const std::string& id) const;
  void add(const Record& measured);
  const Report& report() const { return report_; }

 private:
  void restore(const std::filesystem::path& records);
  void write();

  std::filesystem::path out_;
  std::vector<std::string> plan_;
  std::map<std::string, Record> records_;
  Report report_;
  int lock_ = -1;
  int log_ = -1;
};

/// Runs every cell that the folder does not hold yet. Returns an exit code: 0, 1 where a cell is not ok, 130.
int run_experiment(const Experiment& experiment, const RunOptions& options);

/// The plan as text: cells, what is skipped and why, estimated work and memory.
std::string describe_plan(const Experiment& experiment);

}  // namespace transpool
