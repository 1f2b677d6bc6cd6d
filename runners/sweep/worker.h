#pragma once

#include "runners/report/record.h"
#include "runners/sweep/experiment.h"

#include <sys/types.h>
#include <optional>

namespace transpool {

/// A child process that measures cells one after another. When one kills it, the next call starts another.
class Worker {
 public:
  /// `program` is this executable, `arguments` what makes it a worker (and loads the same plug-ins).
  Worker(std::string program, std::vector<std::string> arguments);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Measures one cell. A worker that dies or overruns gives a record of status crashed or timeout. Nothing where
  /// `interrupted` became true meanwhile: the cell stays unmeasured.
  std::optional<Record> measure(const Cell& cell, double timeout_seconds, const std::function<bool()>& interrupted);

 private:
  void start();
  void stop();
  std::string ending();

  std::string program_;
  std::vector<std::string> arguments_;
  pid_t process_ = -1;
  int requests_ = -1;
  int answers_ = -1;
};

/// The other side: reads cells line by line, answers with records, until the requests end.
int serve_cells(int requests, int answers);

}  // namespace transpool
