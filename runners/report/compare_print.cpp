#include "runners/report/compare.h"
#include "runners/report/display.h"
#include "runners/report/fields.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

namespace transpool {
namespace {

std::string change_text(double relative) {
  if (!std::isfinite(relative)) return std::isnan(relative) ? "" : relative > 0 ? "+inf" : "-inf";
  return relative == 0 ? "0 %" : fmt::format("{:+.{}f} %", 100 * relative, std::abs(relative) < 0.1 ? 2 : 1);
}

std::string figure_text(const Summary& summary) {
  return with_unit(display_with_interval(summary.value, summary.interval), summary.unit);
}

/// What became of a cell that is not ok on both sides.
std::string status_text(const CellComparison& cell) {
  if (cell.broke()) return "SLOW";
  return cell.base->status != Status::ok && cell.current->status == Status::ok ? "FAST" : "SAME";
}

std::string status_reason(const CellComparison& cell) {
  const auto& record = cell.current->status == Status::ok ? *cell.base : *cell.current;
  return first_line(record.reason, 80);
}

using Line = std::vector<std::string>;

const Line heads = {"verdict", "cell", "metric", "base", "new", "change", "because", "base record", "new record"};

std::vector<Line> lines_of(const Comparison& comparison) {
  std::vector<Line> lines;
  for (const auto& cell : comparison.cells) {
    const auto where = axes_text(*cell.current);
    const bool both_ok = cell.base->status == Status::ok && cell.current->status == Status::ok;
    const auto before = cell.base->id.substr(0, 8);
    const auto after = cell.current->id.substr(0, 8);
    if (!both_ok)
      lines.push_back({status_text(cell), where, "status", to_string(cell.base->status), to_string(cell.current->status), "",
                       status_reason(cell), before, after});
    for (const auto& figure : cell.figures)
      lines.push_back({to_string(figure.judgement.change), where, figure.current.name, figure_text(figure.base),
                       figure_text(figure.current), change_text(figure.relative), figure.judgement.reason, before, after});
  }
  return lines;
}

std::string totals(const std::vector<Line>& lines) {
  std::map<std::string, int> counts;
  for (const auto& line : lines) ++counts[line[0]];
  return fmt::format("{} SAME, {} FAST, {} SLOW, {} AMBG", counts["SAME"], counts["FAST"], counts["SLOW"], counts["AMBG"]);
}

/// The closing lines: totals, cells on one side only, notes, the rule.
std::vector<std::string> remarks(const Comparison& comparison, const std::vector<Line>& lines) {
  std::vector<std::string> all = {totals(lines)};
  for (const auto* record : comparison.only_base)
    all.push_back("only in BASE: " + record->id.substr(0, 8) + "  " + axes_text(*record));
  for (const auto* record : comparison.only_current)
    all.push_back("only in NEW: " + record->id.substr(0, 8) + "  " + axes_text(*record));
  for (const auto& note : comparison.notes) all.push_back("note: " + note);
  all.push_back(comparison_rule());
  return all;
}

std::string print_text(const Comparison& comparison) {
  const auto lines = lines_of(comparison);
  // The records' ids are for programs: the axes tell a person which cell it is.
  const std::size_t columns = heads.size() - 2;
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns; ++c) {
    widths.push_back(display_width(heads[c]));
    for (const auto& line : lines) widths[c] = std::max(widths[c], display_width(line[c]));
  }
  std::string text;
  const auto add = [&](const Line& line) {
    std::string row;
    for (std::size_t c = 0; c < columns; ++c)
      row += (c == 0 ? "" : "  ") + (c >= 3 && c <= 5 ? pad_left(line[c], widths[c]) : pad_right(line[c], widths[c]));
    text += row.substr(0, row.find_last_not_of(' ') + 1) + "\n";
  };
  add(heads);
  for (const auto& line : lines) add(line);
  text += "\n";
  for (const auto& remark : remarks(comparison, lines)) text += remark + "\n";
  return text;
}

std::string escaped(const std::string& text, const std::string& special, const std::string& before) {
  std::string result;
  for (const char c : text) result += special.find(c) != std::string::npos ? before + c : std::string(1, c);
  return result;
}

std::string print_markdown(const Comparison& comparison) {
  const auto lines = lines_of(comparison);
  std::string text;
  const auto add = [&](const Line& line) {
    text += "|";
    for (const auto& part : line) text += " " + escaped(part, "|*_<", "\\") + " |";
    text += "\n";
  };
  add(heads);
  text += "|---|---|---|---:|---:|---:|---|---|---|\n";
  for (const auto& line : lines) add(line);
  for (const auto& remark : remarks(comparison, lines)) text += "\n" + escaped(remark, "|*_<", "\\") + "\n";
  return text;
}

std::string csv(const std::string& text) {
  return text.find_first_of(",\"\n\r") == std::string::npos ? text : "\"" + escaped(text, "\"", "\"") + "\"";
}

std::string csv_number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : ""; }

std::string csv_interval(const Summary& summary) {
  if (!summary.interval) return ",";
  return csv_number(summary.interval->first) + "," + csv_number(summary.interval->second);
}

std::string print_csv(const Comparison& comparison) {
  std::string text =
      "verdict,cell,metric,unit,base,base low,base high,new,new low,new high,change,because,base record,new record\n";
  for (const auto& cell : comparison.cells) {
    const auto where = csv(axes_text(*cell.current));
    const auto ids = cell.base->id + "," + cell.current->id;
    if (cell.base->status != Status::ok || cell.current->status != Status::ok)
      text += fmt::format("{},{},status,,{},,,{},,,,{},{}\n", status_text(cell), where, to_string(cell.base->status),
                          to_string(cell.current->status), csv(status_reason(cell)), ids);
    for (const auto& figure : cell.figures)
      text += fmt::format("{},{},{},{},{},{},{},{},{},{},{}\n", to_string(figure.judgement.change), where,
                          csv(figure.current.name), csv(figure.current.unit), csv_number(figure.base.value),
                          csv_interval(figure.base), csv_number(figure.current.value), csv_interval(figure.current),
                          csv_number(figure.relative), csv(figure.judgement.reason), ids);
  }
  return text;
}

Json side(const Summary& summary) {
  Json json = {{"value", finite_or_null(summary.value)}, {"interval", nullptr}, {"samples", summary.samples.size()}};
  if (summary.interval)
    json["interval"] = {finite_or_null(summary.interval->first), finite_or_null(summary.interval->second)};
  return json;
}

Json identity(const Record& record) {
  return {{"id", record.id}, {"axes", record.axes}, {"seed", record.seed}, {"status", to_string(record.status)}};
}

std::string print_json(const Comparison& comparison) {
  Json json = {{"regressed", comparison.regressed()}, {"cells", Json::array()}};
  for (const auto& cell : comparison.cells) {
    Json figures = Json::array();
    for (const auto& figure : cell.figures)
      figures.push_back({{"metric", figure.current.name},
                         {"unit", figure.current.unit},
                         {"higher_is_better", figure.current.higher_is_better},
                         {"verdict", to_string(figure.judgement.change)},
                         {"base", side(figure.base)},
                         {"new", side(figure.current)},
                         {"change", finite_or_null(figure.relative)},
                         {"because", figure.judgement.reason}});
    const bool both_ok = cell.base->status == Status::ok && cell.current->status == Status::ok;
    json["cells"].push_back({{"base", identity(*cell.base)},
                             {"new", identity(*cell.current)},
                             {"status_verdict", both_ok ? "SAME" : status_text(cell)},
                             {"figures", figures}});
  }
  for (const auto& [key, records] :
       {std::pair{"only_base", &comparison.only_base}, {"only_new", &comparison.only_current}}) {
    json[key] = Json::array();
    for (const auto* record : *records) json[key].push_back(identity(*record));
  }
  json["notes"] = comparison.notes;
  json["rule"] = comparison_rule();
  return pretty(json);
}

}  // namespace

std::string print_comparison(const Comparison& comparison, const std::string& format) {
  if (format == "text") return print_text(comparison);
  if (format == "md") return print_markdown(comparison);
  if (format == "csv") return print_csv(comparison);
  if (format == "json") return print_json(comparison);
  throw UsageError(unknown_name_message("format", format, {"text", "md", "csv", "json"}));
}

}  // namespace transpool
