#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>
#include "operators/error.h"

namespace transpool {

/// One measured figure that explains itself, so that printers and plots need no code per metric.
struct Summary {
  std::string name;  ///< "time", "peak_memory", "flops_model", "rouge1" ...
  std::string unit;  ///< "ms", "MiB", "GFLOP", "1", "%", ...
  double value = 0;
  bool higher_is_better = false;
  std::optional<std::pair<double, double>> interval = {};  ///< 95 % confidence interval of `value`
  std::vector<double> samples = {};                        ///< in the order they were taken
  std::string statistic = "value";                         ///< "median", "mean", "max", "value"
  std::string meaning = {};                                ///< one line
};

enum class Status { ok, oom, timeout, crashed, failed, incorrect, unsupported, skipped };

std::string to_string(Status status);
Status status_from_string(const std::string& text);  ///< throws UsageError

/// What became of one cell. `reason` is empty only for `ok`.
struct Record {
  std::string id;              ///< identity hash of the full configuration (see sweep/cell.h)
  Json axes = Json::object();  ///< axis name -> the cell's value on it, as written in the experiment
  std::int64_t seed = 0;
  Json configuration = Json::object();  ///< the full resolved configuration, dotted key -> value
  Status status = Status::ok;
  std::string reason;
  std::string baseline;     ///< id of the record this one is compared with, or ""
  std::string environment;  ///< key into the report's `environments`
  std::string started;      ///< UTC, ISO 8601
  double seconds = 0;       ///< wall time of the whole cell
  std::vector<Summary> summaries;
  Json details = Json::object();  ///< free-form findings: resolved backends, FLOP differences by name, data counts ...
};

/// A value that is not finite is written as null and read back as NaN.
Json to_json(const Summary& summary);
Json to_json(const Record& record);

/// Throw UsageError naming `where`, the JSON pointer and the nearest known key.
Summary summary_from_json(const Json& json, const Where& where = {});
Record record_from_json(const Json& json, const Where& where = {});

/// The summary of that name, or nullptr.
const Summary* find_summary(const Record& record, const std::string& name);

}  // namespace transpool
