#pragma once

#include "runners/report/report.h"
#include "runners/sweep/experiment.h"

namespace transpool {

/// The experiment that has this record's cell and no other: same configuration, device, seed and things to measure.
/// `source` leads messages. Throws UsageError where the record lacks its configuration, or this program cannot run it.
Experiment rerun_experiment(const Report& report, const Record& record, const std::string& source);

}  // namespace transpool
