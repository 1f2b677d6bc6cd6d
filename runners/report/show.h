#pragma once

#include "runners/report/report.h"

namespace transpool {

/// The record whose id begins with `prefix`. Throws UsageError for a prefix of none (naming the nearest id) or of several.
const Record& find_record(const Report& report, const std::string& prefix);

/// One line a record: id, status, axes, the first figure.
std::string list_records(const Report& report, const std::string& path);

/// Everything that is known of one record, and the command that measures it again.
std::string show_record(const Report& report, const Record& record, const std::string& path);

}  // namespace transpool
