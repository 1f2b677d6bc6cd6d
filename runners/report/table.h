#pragma once

#include "runners/report/display.h"
#include "runners/report/report.h"

#include <limits>

namespace transpool {

/// A report under the name that tables show for it.
struct NamedReport {
  std::string name;
  Report report;
};

/// Reads reports and names each by its file, or by its folder where the file is called report.json. Names are unique.
std::vector<NamedReport> read_named_reports(const std::vector<std::string>& paths);

/// What to show; everything empty shows the axes that vary as rows and a choice of metrics as columns.
struct TableRequest {
  std::vector<std::string> rows;     ///< axes, also `seed` (then seeds are not averaged) and `report`
  std::string columns;               ///< one axis whose values stand side by side
  std::vector<std::string> metrics;  ///< names of summaries
};

/// How a cell stands to its baseline. A difference inside the intervals is `same`.
enum class Verdict { none, baseline, same, better, worse };

std::string to_string(Verdict verdict);

/// One figure: a summary, averaged over the seeds of the cell.
struct TableFigure {
  bool present = false;  ///< false: no record of the cell is ok and carries this summary
  double value = 0;
  std::optional<std::pair<double, double>> interval = {};
  Verdict verdict = Verdict::none;
  double ratio = std::numeric_limits<double>::quiet_NaN();  ///< improvement over the baseline: above 1 is better
};

/// What a table tells of a record.
struct TableRecord {
  std::string id;
  Status status = Status::ok;
  std::string reason;
  bool measured = false;  ///< it carries a summary
};

/// The records of one row and one value of the column axis, with a figure for each metric.
struct TableCell {
  std::vector<TableRecord> records;
  std::size_t ok = 0;                          ///< how many of them are ok
  std::optional<Status> status = {};           ///< of the first that is not ok, else ok; nothing for a cell without records
  std::optional<Status> baseline_status = {};  ///< where the baseline itself is not ok
  std::vector<TableFigure> figures;            ///< one a metric
};

struct TableMetric {
  std::string name;
  std::string unit;
  std::string meaning;
  bool higher_is_better = false;
};

struct TableRow {
  std::vector<Json> values;      ///< one a row axis
  std::vector<TableCell> cells;  ///< one a value of the column axis; one in all where there is none
};

struct Table {
  std::vector<std::string> row_axes;
  std::string column_axis;          ///< "" where nothing is spread
  std::vector<Json> column_values;  ///< of the column axis
  std::vector<TableMetric> metrics;
  std::vector<TableRow> rows;
  std::vector<std::string> notes;  ///< what a reader must know to read the figures
};

/// Throws UsageError for an unknown axis or metric, with the nearest known name.
Table make_table(const std::vector<NamedReport>& reports, const TableRequest& request);

/// "1.82x faster", "same", "baseline", "" ...
std::string display_ratio(const TableMetric& metric, const TableFigure& figure);

/// `format` is one of text, md, csv, latex, json; UsageError for any other.
std::string print_table(const Table& table, const std::string& format);

}  // namespace transpool
