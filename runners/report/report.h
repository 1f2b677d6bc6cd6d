#pragma once

#include <filesystem>
#include <string>
#include <vector>
#include "runners/report/record.h"

namespace transpool {

inline constexpr int report_schema_version = 1;

/// A whole run: the experiment as resolved, every environment that contributed, and one record a cell.
struct Report {
  Json experiment = Json::object();
  Json environment = Json::object();   ///< of the last run that wrote the report
  Json environments = Json::object();  ///< key -> environment; records name theirs by key
  std::vector<Record> records;         ///< in the order of the plan
};

Json to_json(const Report& report);

/// Throws UsageError naming `where`, the JSON pointer and what is wrong there.
Report report_from_json(const Json& json, const Where& where = {});

/// Reads `report.json`, or the folder that holds it. Throws UsageError naming file, JSON pointer and what is wrong.
Report read_report(const std::filesystem::path& path);

/// Writes the whole report with write_atomically; one line for each list of samples.
void write_report(const std::filesystem::path& path, const Report& report);

/// Replaces `path` atomically: a reader sees the old whole file or the new whole file, also after a power cut.
void write_atomically(const std::filesystem::path& path, const std::string& text);

}  // namespace transpool
