#include "runners/report/show.h"

#include "runners/report/display.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace transpool {
namespace {

using Line = std::pair<std::string, std::string>;

/// A path as a shell takes it back.
std::string quoted(const std::string& path) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || std::string("/._-+=:@%").find(c) != std::string::npos;
  };
  if (!path.empty() && std::all_of(path.begin(), path.end(), plain)) return path;
  std::string text = "'";
  for (const char c : path) text += c == '\'' ? "'\\''" : std::string(1, c);
  return text + "'";
}

std::string aligned(const std::vector<Line>& lines) {
  std::size_t width = 0;
  for (const auto& [key, value] : lines) width = std::max(width, display_width(key));
  std::string text;
  for (const auto& [key, value] : lines) {
    text += "  " + pad_right(key, width) + "  ";
    // The further lines of a value (a stack trace) stand below its first.
    for (const char c : value) {
      text += c;
      if (c == '\n') text.append(width + 4, ' ');
    }
    text += "\n";
  }
  return text;
}

/// Nested objects as dotted keys. An object with a `name` is a variant and stays one value.
void flatten(const Json& json, const std::string& prefix, std::vector<Line>& lines) {
  for (const auto& [key, value] : json.items()) {
    const auto path = prefix.empty() ? key : fmt::format("{}.{}", prefix, key);
    if (value.is_object() && !value.empty() && !value.contains("name")) flatten(value, path, lines);
    else lines.emplace_back(path, display_value(value));
  }
}

std::string section(const std::string& title, const Json& json) {
  std::vector<Line> lines;
  flatten(json, "", lines);
  return lines.empty() ? "" : "\n" + title + "\n" + aligned(lines);
}

/// "7.71 to 7.79", with the digits that the figure itself is shown with.
std::string interval_text(const Summary& summary) {
  if (!summary.interval) return "";
  const auto [low, high] = *summary.interval;
  const auto shown = display_figure(summary.value, summary.interval).value;
  const auto point = shown.find('.');
  if (shown.find('e') != std::string::npos || !std::isfinite(low) || !std::isfinite(high))
    return fmt::format("{:.4g} to {:.4g}", low, high);
  const auto decimals = point == std::string::npos ? 0 : shown.size() - point - 1;
  return fmt::format("{:.{}f} to {:.{}f}", low, decimals, high, decimals);
}

std::string samples_text(const std::vector<double>& samples) {
  if (samples.empty()) return "";
  const auto [low, high] = std::minmax_element(samples.begin(), samples.end());
  const auto line = sparkline(samples);
  return fmt::format("{} samples", samples.size()) +
         (line.empty() ? "" : fmt::format(" {:.4g} ▕{}▏ {:.4g}", *low, line, *high));
}

std::string summaries_text(const Record& record) {
  std::size_t name_width = 0;
  std::size_t figure_width = 0;
  const auto figure = [](const Summary& s) { return with_unit(display_figure(s.value, s.interval).value, s.unit); };
  for (const auto& summary : record.summaries) {
    name_width = std::max(name_width, display_width(summary.name));
    figure_width = std::max(figure_width, display_width(figure(summary)));
  }
  std::string text = record.summaries.empty() ? "" : "\nsummaries\n";
  const std::string indent(name_width + 4, ' ');
  for (const auto& summary : record.summaries) {
    text += "  " + pad_right(summary.name, name_width) + "  " + pad_left(figure(summary), figure_width) + "  " +
            summary.statistic;
    if (const auto interval = interval_text(summary); !interval.empty()) text += ", 95 % interval " + interval;
    text += summary.higher_is_better ? ", higher is better\n" : "\n";
    if (!summary.meaning.empty()) text += indent + summary.meaning + "\n";
    if (!summary.samples.empty()) text += indent + samples_text(summary.samples) + "\n";
  }
  return text;
}

std::string baseline_text(const Report& report, const Record& record) {
  if (record.baseline == record.id) return "this record is its own baseline";
  for (const auto& other : report.records)
    if (other.id == record.baseline) return other.id + "  " + axes_text(other) + "  (" + to_string(other.status) + ")";
  return record.baseline + "  (not in this report)";
}

}  // namespace

const Record& find_record(const Report& report, const std::string& prefix) {
  std::vector<const Record*> found;
  std::vector<std::string> ids;
  for (const auto& record : report.records) {
    if (record.id == prefix) return record;
    if (record.id.starts_with(prefix)) found.push_back(&record);
    ids.push_back(record.id);
  }
  if (found.size() == 1) return *found.front();
  if (found.size() > 1) {
    std::string text = fmt::format("\"{}\" begins the ids of {} records:", prefix, found.size());
    for (std::size_t i = 0; i < found.size() && i < 10; ++i) text += "\n  " + found[i]->id + "  " + axes_text(*found[i]);
    throw UsageError(text + (found.size() > 10 ? "\n  ..." : ""));
  }
  // A prefix is as near as the beginnings of ids of its own length.
  std::map<std::string, std::string> whole;
  std::vector<std::string> beginnings;
  for (const auto& id : ids) whole.emplace(beginnings.emplace_back(id.substr(0, prefix.size())), id);
  const auto near = nearest_name(prefix, beginnings);
  throw UsageError("no record's id begins with \"" + prefix + "\"" +
                   (near.empty() ? "; transpool show REPORT lists them" : "; did you mean \"" + whole[near] + "\"?"));
}

std::string list_records(const Report& report, const std::string& path) {
  std::vector<std::string> ids;
  std::size_t axes_width = 0;
  std::size_t status_width = 0;
  std::size_t ok = 0;
  for (const auto& record : report.records) {
    ids.push_back(record.id);
    axes_width = std::max(axes_width, display_width(axes_text(record)));
    status_width = std::max(status_width, to_string(record.status).size());
    if (record.status == Status::ok) ++ok;
  }
  const auto length = unique_prefix_length(ids);
  std::string text;
  for (const auto& record : report.records) {
    auto line = pad_right(record.id.substr(0, length), length) + "  " + pad_right(to_string(record.status), status_width) +
                "  " + pad_right(axes_text(record), axes_width);
    if (record.status != Status::ok) line += "  " + first_line(record.reason, 80);
    else if (!record.summaries.empty()) {
      const auto& first = record.summaries.front();
      line += "  " + first.name + " " + with_unit(display_with_interval(first.value, first.interval), first.unit);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  const auto name = report.experiment.contains("name") ? display_value(report.experiment["name"]) + ": " : "";
  return text + fmt::format("\n{}{} records, {} ok. One in full: transpool show {} RECORD\n", name, report.records.size(),
                            ok, quoted(path));
}

std::string show_record(const Report& report, const Record& record, const std::string& path) {
  std::string text = "record " + record.id + "\n";
  std::vector<Line> lines{{"status", to_string(record.status)}};
  if (!record.reason.empty()) lines.emplace_back("reason", record.reason);
  lines.emplace_back("axes", axes_text(record));
  if (!record.baseline.empty()) lines.emplace_back("baseline", baseline_text(report, record));
  if (!record.started.empty())
    lines.emplace_back("started", fmt::format("{}, took {:.3g} s", record.started, record.seconds));
  text += aligned(lines) + summaries_text(record) + section("configuration", record.configuration) +
          section("details", record.details);
  if (report.environments.contains(record.environment))
    text += section("environment " + record.environment, report.environments[record.environment]);
  return text + "\nmeasure it again\n  transpool rerun " + quoted(path) + " " + record.id + "\n";
}

}  // namespace transpool
