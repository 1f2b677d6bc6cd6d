#pragma once

#include "operators/registry.h"
#include "runners/report/record.h"
#include "runners/sweep/experiment.h"

#include <ATen/core/Tensor.h>

namespace transpool {

/// One thing to measure: a pass that can be repeated, on inputs that can be redrawn.
struct Workload {
  std::string prefix;         ///< before the names of its summaries: "", "train_", "inference_"
  std::string what;           ///< what one pass is, in words
  std::function<void()> run;  ///< queues one pass; the caller synchronises
  /// One pass whose results are given back; may be empty. What has it gets `workspace`, and on CUDA its launches counted.
  std::function<std::vector<at::Tensor>()> results;
  std::function<void()> redraw;        ///< new random inputs of the same shape
  std::function<std::string()> check;  ///< against the reference, on the current inputs: "" or what is wrong; may be empty
  Cost cost;
  bool backward = false;
  at::ScalarType dtype = at::kFloat;  ///< of the rows
  /// Bytes that one pass must move at least, for `roofline`: inputs once a direction, results and gradients once.
  std::function<double(const Record&)> bytes;
};

/// A level of measuring. One lives in one file under levels/ and registers itself.
struct Level {
  std::string name;
  std::string description;
  /// Throws UsageError for a combination that is wrong, Unsupported for one that cannot run here; builds nothing.
  std::function<void(const Cell&, const Where&)> check;
  /// Declared cost of one pass, for the plan.
  std::function<Cost(const Cell&)> estimate;
  /// Measures the cell into the record: summaries and details. Throws what goes wrong.
  std::function<void(const Cell&, Record&)> measure;
};

struct RegisterLevel {
  explicit RegisterLevel(Level level);
};

const Level& find_level(const std::string& name);

/// ", about 12.3 GFLOP and 45 MiB of activations": what the plan says of a cell.
std::string estimate_text(const Cell& cell);

/// Checks the workload, then takes time, memory and FLOPs in passes of their own, as the cell asks. Throws Incorrect.
void measure_workload(const Cell& cell, Workload& workload, Record& record);

/// A variant that does not agree with its reference: status `incorrect`, and no time.
class Incorrect : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Runs the cell here and now, whatever happens: the record says what became of it.
Record measure_cell(const Cell& cell);

}  // namespace transpool
