#include "runners/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

namespace transpool {
namespace {

constexpr std::size_t most_figures = 5;  ///< side by side, before a table is wider than most terminals

/// A record with what it needs from its report.
struct Entry {
  const Record* record;
  const NamedReport* report;
};

using Entries = std::vector<Entry>;

Json axis_value(const Entry& entry, const std::string& axis) {
  if (entry.record->axes.contains(axis)) return entry.record->axes[axis];
  if (axis == "report") return entry.report->name;
  if (axis == "seed") return entry.record->seed;
  return nullptr;
}

std::string label(const Entry& entry, const std::string& axis) { return display_value(axis_value(entry, axis)); }

Entries all_entries(const std::vector<NamedReport>& reports) {
  Entries entries;
  for (const auto& report : reports)
    for (const auto& record : report.report.records) entries.push_back({&record, &report});
  return entries;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Every axis by which records can differ, `report` first; seeds are no axis, they are averaged over.
std::vector<std::string> axes_of(const Entries& entries) {
  std::vector<std::string> axes{"report"};
  for (const auto& entry : entries)
    for (const auto& item : entry.record->axes.items())
      if (item.key() != "seed" && !contains(axes, item.key())) axes.push_back(item.key());
  return axes;
}

bool varies(const Entries& entries, const std::string& axis) {
  return std::any_of(entries.begin(), entries.end(),
                     [&](const Entry& entry) { return label(entry, axis) != label(entries.front(), axis); });
}

// --- rows and columns --------------------------------------------------------------------------------------------------

/// The entries of each row, and in it of each value of the column axis, in the order of the records.
struct Grouping {
  std::vector<std::string> row_axes;
  std::string column_axis;
  std::vector<Json> column_values;
  std::vector<std::vector<Json>> row_values;
  std::vector<std::vector<Entries>> cells;  ///< [row][column]
};

void sort_numbers(std::vector<Json>& values) {
  if (std::all_of(values.begin(), values.end(), [](const Json& value) { return value.is_number(); }))
    std::sort(values.begin(), values.end(), [](const Json& a, const Json& b) { return a.get<double>() < b.get<double>(); });
}

std::vector<Json> distinct_values(const Entries& entries, const std::string& axis) {
  std::vector<Json> values;
  std::set<std::string> seen;
  for (const auto& entry : entries)
    if (seen.insert(label(entry, axis)).second) values.push_back(axis_value(entry, axis));
  sort_numbers(values);
  return values;
}

Grouping group(const Entries& entries, const std::vector<std::string>& row_axes, const std::string& column_axis) {
  Grouping groups{row_axes, column_axis, {}, {}, {}};
  std::map<std::string, std::size_t> columns;
  if (!column_axis.empty()) groups.column_values = distinct_values(entries, column_axis);
  for (const auto& value : groups.column_values) columns.emplace(display_value(value), columns.size());
  std::map<std::vector<std::string>, std::size_t> rows;
  for (const auto& entry : entries) {
    std::vector<std::string> key;
    std::vector<Json> values;
    for (const auto& axis : row_axes) {
      values.push_back(axis_value(entry, axis));
      key.push_back(display_value(values.back()));
    }
    const auto [row, fresh] = rows.emplace(key, rows.size());
    if (fresh) {
      groups.row_values.push_back(values);
      groups.cells.emplace_back(std::max<std::size_t>(1, columns.size()));
    }
    groups.cells[row->second][column_axis.empty() ? 0 : columns.at(label(entry, column_axis))].push_back(entry);
  }
  return groups;
}

bool varies_within_a_cell(const Grouping& groups, const std::string& axis) {
  for (const auto& row : groups.cells)
    for (const auto& cell : row)
      if (!cell.empty() && varies(cell, axis)) return true;
  return false;
}

void check_axis(const std::string& axis, std::vector<std::string> known, const Entries& entries) {
  known.emplace_back("seed");
  if (contains(known, axis)) return;
  // A name that is fixed in the whole report is no axis, but a likely thing to ask for.
  const auto fixed = [&](const Entry& entry) { return entry.record->configuration.contains(axis); };
  if (std::any_of(entries.begin(), entries.end(), fixed))
    throw UsageError("\"" + axis + "\" is no axis of these records: it is fixed in each report; axes: " + join(known));
  throw UsageError(unknown_name_message("axis", axis, known));
}

/// Rows as asked for, or the axes that vary; and then every axis without which unlike cells would be averaged.
Grouping arrange(const Entries& entries, const TableRequest& request, std::vector<std::string>& notes) {
  const auto axes = axes_of(entries);
  for (const auto& axis : request.rows) check_axis(axis, axes, entries);
  if (!request.columns.empty()) check_axis(request.columns, axes, entries);
  if (contains(request.rows, request.columns))
    throw UsageError("the axis \"" + request.columns + "\" is both in --rows and --columns");
  auto rows = request.rows;
  if (rows.empty())
    for (const auto& axis : axes)
      if (axis != request.columns && varies(entries, axis)) rows.push_back(axis);
  if (rows.empty())
    for (const auto& axis : axes)
      if (axis != request.columns && axis != "report") rows.push_back(axis);
  auto groups = group(entries, rows, request.columns);
  for (const auto& axis : axes) {
    if (contains(groups.row_axes, axis) || axis == request.columns || !varies_within_a_cell(groups, axis)) continue;
    notes.push_back("the axis " + axis + " varies within the rows asked for, so it stands among them");
    rows.push_back(axis);
    groups = group(entries, rows, request.columns);
  }
  return groups;
}

// --- metrics -----------------------------------------------------------------------------------------------------------

/// What is known of a metric over all records that are ok.
struct Candidate {
  TableMetric metric;
  std::vector<double> values;

  bool constant() const {
    return values.size() > 1 && std::all_of(values.begin(), values.end(), [&](double x) { return x == values.front(); });
  }
  std::pair<Quantity, bool> kind() const { return {quantity_of(metric.unit), metric.higher_is_better}; }
};

/// Metrics in the order in which the records name them. One name in two units is two metrics.
std::vector<Candidate> candidates(const Entries& entries) {
  std::vector<Candidate> found;
  for (const auto& entry : entries) {
    if (entry.record->status != Status::ok) continue;
    for (const auto& summary : entry.record->summaries) {
      auto place = std::find_if(found.begin(), found.end(), [&](const Candidate& candidate) {
        return candidate.metric.name == summary.name && candidate.metric.unit == summary.unit;
      });
      if (place == found.end())
        place = found.insert(found.end(),
                             Candidate{{summary.name, summary.unit, summary.meaning, summary.higher_is_better}, {}});
      if (std::isfinite(summary.value)) place->values.push_back(summary.value);
    }
  }
  return found;
}

/// Chooses what a reader looks for first: of each kind of quantity (time, memory, operations, rates, quality) one metric,
/// then of each a second, until the table is full. A metric that is the same in every record tells nothing.
std::vector<TableMetric> choose(const std::vector<Candidate>& all, std::size_t limit, std::vector<std::string>& notes) {
  std::map<std::pair<Quantity, bool>, std::vector<const Candidate*>> kinds;
  for (const auto& candidate : all)
    if (!candidate.values.empty() && !candidate.constant()) kinds[candidate.kind()].push_back(&candidate);
  std::set<const Candidate*> chosen;
  for (std::size_t round = 0; round < all.size(); ++round)
    for (const auto& [kind, members] : kinds)
      if (round < members.size() && chosen.size() < limit) chosen.insert(members[round]);
  if (chosen.empty() && !all.empty()) chosen.insert(&all.front());
  std::vector<TableMetric> metrics;
  for (const auto& [kind, members] : kinds)
    for (const auto* candidate : members)
      if (chosen.contains(candidate)) metrics.push_back(candidate->metric);
  if (metrics.empty() && !all.empty()) metrics.push_back(all.front().metric);
  std::vector<std::string> others;
  for (const auto& candidate : all) {
    if (chosen.contains(&candidate)) continue;
    const bool constant = candidate.constant();
    others.push_back(candidate.metric.name +
                     (constant ? " (always " + display_figure(candidate.values[0], {}).value + ")" : ""));
  }
  if (!others.empty()) notes.push_back("also measured, shown with --metrics: " + join(others));
  return metrics;
}

/// Where no record is ok nothing can be known of its metrics: the names are taken as they are, and the cells show statuses.
std::vector<TableMetric> asked_for(const std::vector<Candidate>& all, const std::vector<std::string>& names) {
  std::vector<std::string> known;
  for (const auto& candidate : all)
    if (!contains(known, candidate.metric.name)) known.push_back(candidate.metric.name);
  std::vector<TableMetric> metrics;
  for (const auto& name : names) {
    if (all.empty()) metrics.push_back({name, "", "", false});
    else if (!contains(known, name)) throw UsageError(unknown_name_message("metric", name, known));
    for (const auto& candidate : all)
      if (candidate.metric.name == name) metrics.push_back(candidate.metric);
  }
  return metrics;
}

// --- figures -----------------------------------------------------------------------------------------------------------

const Summary* summary_of(const Record& record, const TableMetric& metric) {
  if (record.status != Status::ok) return nullptr;
  const auto* summary = find_summary(record, metric.name);
  return summary != nullptr && summary->unit == metric.unit && std::isfinite(summary->value) ? summary : nullptr;
}

/// The 97.5 % point of Student's t distribution.
double student_t(std::size_t freedom) {
  static constexpr std::array<double, 30> points{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                                 2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                                 2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
  // Beyond the table the first terms of the expansion in 1 / freedom are exact to three decimals.
  return freedom <= points.size() ? points[freedom - 1] : 1.95996 + 2.3724 / static_cast<double>(freedom);
}

/// One summary speaks for itself; several, of different seeds, give their mean and its interval.
TableFigure average(const std::vector<const Summary*>& summaries) {
  TableFigure figure;
  if (summaries.empty()) return figure;
  figure.present = true;
  if (summaries.size() == 1) {
    figure.value = summaries[0]->value;
    figure.interval = summaries[0]->interval;
    return figure;
  }
  const auto count = static_cast<double>(summaries.size());
  double sum = 0;
  for (const auto* summary : summaries) sum += summary->value;
  figure.value = sum / count;
  double squares = 0;
  for (const auto* summary : summaries) squares += (summary->value - figure.value) * (summary->value - figure.value);
  const double half = student_t(summaries.size() - 1) * std::sqrt(squares / (count - 1) / count);
  figure.interval = {figure.value - half, figure.value + half};
  return figure;
}

bool overlap(const TableFigure& a, const TableFigure& b) {
  const auto first = a.interval.value_or(std::pair(a.value, a.value));
  const auto second = b.interval.value_or(std::pair(b.value, b.value));
  return !(first.second < second.first || second.second < first.first);  // an unknown end (NaN) proves no difference
}

/// Finds the records that others are compared with.
class Baselines {
 public:
  explicit Baselines(const Entries& entries) {
    for (const auto& entry : entries) {
      by_id_.emplace(entry.record->id, entry.record);
      named_.insert(entry.record->baseline);
    }
  }
  const Record* of(const Record& record) const {
    const auto found = by_id_.find(record.baseline);
    return found == by_id_.end() ? nullptr : found->second;
  }
  bool is_baseline(const Record& record) const {
    return record.baseline == record.id || (record.baseline.empty() && named_.contains(record.id));
  }

 private:
  std::map<std::string, const Record*> by_id_;
  std::set<std::string> named_;
};

/// Compares seed with seed: the ratio is the geometric mean over the pairs.
void compare(TableFigure& figure, const Entries& entries, const TableMetric& metric, const Baselines& baselines) {
  if (!figure.present) return;
  std::vector<const Summary*> ours;
  std::vector<const Summary*> theirs;
  double logarithms = 0;
  for (const auto& entry : entries) {
    const auto* record = entry.record;
    if (baselines.is_baseline(*record)) {
      figure.verdict = Verdict::baseline;
      return;
    }
    const auto* other = baselines.of(*record);
    const auto* our = summary_of(*record, metric);
    const auto* their = other == nullptr ? nullptr : summary_of(*other, metric);
    if (our == nullptr || their == nullptr) continue;
    ours.push_back(our);
    theirs.push_back(their);
    logarithms += std::log(metric.higher_is_better ? our->value / their->value : their->value / our->value);
  }
  if (ours.empty()) return;
  figure.ratio = std::exp(logarithms / static_cast<double>(ours.size()));
  const auto our = average(ours);
  const auto their = average(theirs);
  const bool better = metric.higher_is_better ? our.value > their.value : our.value < their.value;
  figure.verdict = overlap(our, their) ? Verdict::same : better ? Verdict::better : Verdict::worse;
}

TableCell make_cell(const Entries& entries, const std::vector<TableMetric>& metrics, const Baselines& baselines) {
  TableCell cell;
  for (const auto& entry : entries) {
    const auto& record = *entry.record;
    cell.records.push_back({record.id, record.status, record.reason, !record.summaries.empty()});
    if (record.status == Status::ok) ++cell.ok;
    if (!cell.status || *cell.status == Status::ok) cell.status = record.status;
    const auto* other = baselines.of(record);
    if (other != nullptr && other != &record && other->status != Status::ok) cell.baseline_status = other->status;
  }
  for (const auto& metric : metrics) {
    std::vector<const Summary*> summaries;
    for (const auto& entry : entries)
      if (const auto* summary = summary_of(*entry.record, metric)) summaries.push_back(summary);
    cell.figures.push_back(average(summaries));
    compare(cell.figures.back(), entries, metric, baselines);
  }
  return cell;
}

void explain_figures(Table& table, const Entries& entries) {
  std::size_t seeds = 0;
  bool intervals = false;
  for (const auto& row : table.rows)
    for (const auto& cell : row.cells) {
      seeds = std::max(seeds, cell.records.size());
      for (const auto& figure : cell.figures) intervals = intervals || figure.interval;
    }
  if (seeds > 1)
    table.notes.insert(table.notes.begin(),
                       fmt::format("mean over {} seeds ± half of its 95 % interval (Student's t)", seeds));
  else if (intervals) table.notes.insert(table.notes.begin(), "± is half of the 95 % interval");
  std::set<std::string> environments;
  for (const auto& entry : entries)
    if (!entry.record->environment.empty()) {
      const auto& known = entry.report->report.environments;
      environments.insert(known.contains(entry.record->environment)
                              ? known[entry.record->environment].dump(-1, ' ', false, Json::error_handler_t::replace)
                              : entry.record->environment);
    }
  if (environments.size() > 1)
    table.notes.push_back(fmt::format("the records come from {} environments: times of different machines do not compare",
                                      environments.size()));
}

}  // namespace

std::string to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::baseline: return "baseline";
    case Verdict::same: return "same";
    case Verdict::better: return "better";
    case Verdict::worse: return "worse";
    case Verdict::none: break;
  }
  return "";
}

std::vector<NamedReport> read_named_reports(const std::vector<std::string>& paths) {
  std::vector<NamedReport> reports;
  std::map<std::string, int> uses;
  for (const auto& text : paths) {
    auto path = std::filesystem::path(text).lexically_normal();
    if (path.filename().empty()) path = path.parent_path();
    const bool by_folder = path.filename() == "report.json" && path.has_parent_path();
    const auto named = by_folder ? path.parent_path() : path;
    reports.push_back(
        {(std::filesystem::is_directory(named) ? named.filename() : named.stem()).string(), read_report(text)});
    ++uses[reports.back().name];
  }
  for (std::size_t i = 0; i < reports.size(); ++i)
    if (uses[reports[i].name] > 1) reports[i].name = paths[i];
  return reports;
}

Table make_table(const std::vector<NamedReport>& reports, const TableRequest& request) {
  const auto entries = all_entries(reports);
  Table table;
  if (entries.empty()) {
    table.notes.emplace_back("there are no records");
    return table;
  }
  const auto groups = arrange(entries, request, table.notes);
  table.row_axes = groups.row_axes;
  table.column_axis = groups.column_axis;
  table.column_values = groups.column_values;
  const auto known = candidates(entries);
  const auto limit = std::max<std::size_t>(1, most_figures / std::max<std::size_t>(1, groups.column_values.size()));
  table.metrics = request.metrics.empty() ? choose(known, limit, table.notes) : asked_for(known, request.metrics);
  if (table.metrics.empty()) table.metrics.push_back({"status", "", "What became of the cell", false});
  const Baselines baselines(entries);
  for (std::size_t row = 0; row < groups.cells.size(); ++row) {
    table.rows.push_back({groups.row_values[row], {}});
    for (const auto& cell : groups.cells[row]) table.rows.back().cells.push_back(make_cell(cell, table.metrics, baselines));
  }
  explain_figures(table, entries);
  return table;
}

}  // namespace transpool
