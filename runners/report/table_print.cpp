#include "runners/report/fields.h"
#include "runners/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>

namespace transpool {
namespace {

constexpr std::size_t most_problems = 20;

// --- from the table to a grid of texts -----------------------------------------------------------------------------------

/// `half` is what follows the ± sign, kept apart so that the signs of a column stand below each other.
struct GridCell {
  std::string text;
  std::string half = {};
};

struct GridColumn {
  std::vector<std::string> heads;  ///< value of the column axis, name, unit; any may be empty
  bool right = true;
  std::vector<GridCell> cells;
};

struct Grid {
  std::vector<GridColumn> columns;
  std::vector<std::string> footnotes;  ///< "[1] ids", where a row has too many records for a column
};

std::size_t cells_in_row(const Table& table) { return table.rows.empty() ? 0 : table.rows.front().cells.size(); }

std::string column_label(const Table& table, std::size_t column) {
  return table.column_axis.empty() ? "" : display_value(table.column_values[column]);
}

std::string figure_text(const TableCell& cell, const TableFigure& figure) {
  if (!cell.status) return "";
  if (figure.present) return display_figure(figure.value, figure.interval).value;
  if (*cell.status != Status::ok) return to_string(*cell.status);
  const bool measured =
      std::any_of(cell.records.begin(), cell.records.end(), [](const TableRecord& record) { return record.measured; });
  return measured ? "-" : "ok";
}

/// `tells_share`: also says how many of the seeds the figure comes from, where some failed; once in a row is enough.
GridCell figure_cell(const TableCell& cell, const TableFigure& figure, bool tells_share) {
  GridCell shown{figure_text(cell, figure)};
  if (!figure.present) return shown;
  shown.half = display_figure(figure.value, figure.interval).half;
  if (tells_share && cell.ok < cell.records.size()) {
    const auto share = fmt::format(" ({} of {})", cell.ok, cell.records.size());
    (shown.half.empty() ? shown.text : shown.half) += share;
  }
  return shown;
}

std::string ratio_cell(const TableMetric& metric, const TableCell& cell, const TableFigure& figure) {
  if (figure.present && figure.verdict == Verdict::none && cell.baseline_status)
    return "baseline " + to_string(*cell.baseline_status);
  return display_ratio(metric, figure);
}

bool compared(const Table& table, std::size_t metric) {
  for (const auto& row : table.rows)
    for (const auto& cell : row.cells) {
      const auto verdict = cell.figures[metric].verdict;
      if (verdict != Verdict::none && verdict != Verdict::baseline) return true;
    }
  return false;
}

/// For people, ratios stand beside times alone (or the first metric, where no time is shown): more would hide them.
bool shows_ratio(const Table& table, std::size_t metric) {
  const auto is_time = [](const TableMetric& m) { return quantity_of(m.unit) == Quantity::time; };
  const bool any_time = std::any_of(table.metrics.begin(), table.metrics.end(), is_time);
  return (any_time ? is_time(table.metrics[metric]) : metric == 0) && compared(table, metric);
}

std::vector<std::string> ids_of(const TableRow& row) {
  std::vector<std::string> ids;
  for (const auto& cell : row.cells)
    for (const auto& record : cell.records) ids.push_back(record.id);
  return ids;
}

std::size_t id_length(const Table& table) {
  std::vector<std::string> ids;
  for (const auto& row : table.rows)
    for (auto& id : ids_of(row)) ids.push_back(std::move(id));
  return unique_prefix_length(ids);
}

std::string short_ids(const TableCell& cell, std::size_t length) {
  std::vector<std::string> ids;
  for (const auto& record : cell.records) ids.push_back(record.id.substr(0, length));
  return join(ids, " ");
}

/// Every cell names its records: in a last column where they are few, else in footnotes.
void add_records(Grid& grid, const Table& table) {
  const auto length = id_length(table);
  const bool few =
      std::all_of(table.rows.begin(), table.rows.end(), [](const TableRow& row) { return ids_of(row).size() <= 2; });
  GridColumn column{{"", few ? "record" : "records", ""}, false, {}};
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    const auto& row = table.rows[i];
    const auto mark = fmt::format("[{}]", i + 1);
    std::vector<std::string> parts;
    for (std::size_t c = 0; c < row.cells.size(); ++c) {
      if (row.cells[c].records.empty()) continue;
      const auto label = column_label(table, c);
      parts.push_back((few || label.empty() ? "" : label + ": ") + short_ids(row.cells[c], length));
    }
    column.cells.push_back({few ? join(parts, " ") : mark});
    if (!few) grid.footnotes.push_back(mark + " " + join(parts, "; "));
  }
  grid.columns.push_back(std::move(column));
}

void add_axes(Grid& grid, const Table& table) {
  for (std::size_t axis = 0; axis < table.row_axes.size(); ++axis) {
    GridColumn column{{"", table.row_axes[axis], ""}, true, {}};
    for (const auto& row : table.rows) {
      column.right = column.right && row.values[axis].is_number();
      column.cells.push_back({row.values[axis].is_null() ? "" : display_value(row.values[axis])});
    }
    grid.columns.push_back(std::move(column));
  }
}

void add_metric(Grid& grid, const Table& table, std::size_t column, std::size_t m) {
  const auto& metric = table.metrics[m];
  const auto label = table.column_axis.empty() ? "" : table.column_axis + "=" + column_label(table, column);
  GridColumn figures{{label, metric.name, metric.unit == "1" ? "" : metric.unit}, true, {}};
  GridColumn ratios{{"", "vs baseline", ""}, true, {}};
  for (const auto& row : table.rows) {
    figures.cells.push_back(figure_cell(row.cells[column], row.cells[column].figures[m], m == 0));
    ratios.cells.push_back({ratio_cell(metric, row.cells[column], row.cells[column].figures[m])});
  }
  grid.columns.push_back(std::move(figures));
  if (shows_ratio(table, m)) grid.columns.push_back(std::move(ratios));
}

Grid make_grid(const Table& table) {
  Grid grid;
  add_axes(grid, table);
  for (std::size_t column = 0; column < cells_in_row(table); ++column)
    for (std::size_t m = 0; m < table.metrics.size(); ++m) add_metric(grid, table, column, m);
  add_records(grid, table);
  return grid;
}

/// The records that are not ok, with their reasons: the table has room for the status alone.
std::vector<std::string> problems(const Table& table) {
  const auto length = id_length(table);
  std::vector<std::string> reasons;
  std::map<std::string, std::vector<std::string>> ids;
  for (const auto& row : table.rows)
    for (const auto& cell : row.cells)
      for (const auto& record : cell.records) {
        if (record.status == Status::ok) continue;
        const auto reason = to_string(record.status) + ": " + first_line(record.reason, 100);
        if (!ids.contains(reason)) reasons.push_back(reason);
        ids[reason].push_back(record.id.substr(0, length));
      }
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < std::min(reasons.size(), most_problems); ++i)
    lines.push_back(reasons[i] + " [" + join(ids[reasons[i]], " ") + "]");
  if (reasons.size() > most_problems) lines.push_back(fmt::format("and {} other reasons", reasons.size() - most_problems));
  return lines;
}

// --- text ----------------------------------------------------------------------------------------------------------------

/// Widths of the parts of a column: the figure, and what follows the ± sign.
struct Widths {
  std::size_t text = 0;
  std::size_t half = 0;
  std::size_t whole = 0;
};

Widths widths_of(const GridColumn& column) {
  Widths widths;
  for (const auto& cell : column.cells) widths.half = std::max(widths.half, display_width(cell.half));
  for (const auto& cell : column.cells)
    // A cell without a ± part (a status) may use the room of the parts that others have.
    if (!cell.half.empty() || widths.half == 0) widths.text = std::max(widths.text, display_width(cell.text));
  widths.whole = widths.text + (widths.half == 0 ? 0 : 3 + widths.half);
  for (const auto& cell : column.cells) widths.whole = std::max(widths.whole, display_width(cell.text));
  for (const auto& head : column.heads) widths.whole = std::max(widths.whole, display_width(head));
  return widths;
}

std::string text_cell(const GridColumn& column, const GridCell& cell, const Widths& widths) {
  if (!column.right) return pad_right(cell.text, widths.whole);
  if (cell.half.empty()) {
    // An exact number stands where the others of its column stand; a word ends where the column ends.
    const bool number = !cell.text.empty() && (std::isdigit(static_cast<unsigned char>(cell.text.back())) != 0);
    const std::size_t room = number && widths.half > 0 ? 3 + widths.half : 0;
    return pad_left(cell.text + std::string(room, ' '), widths.whole);
  }
  return pad_left(pad_left(cell.text, widths.text) + " ± " + pad_right(cell.half, widths.half), widths.whole);
}

std::string trimmed(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

std::string text_heads(const Grid& grid, const std::vector<Widths>& widths) {
  std::string text;
  for (std::size_t line = 0; line < 3; ++line) {
    std::string heads;
    for (std::size_t c = 0; c < grid.columns.size(); ++c) {
      const auto& column = grid.columns[c];
      heads += (c == 0 ? "" : "  ") + (column.right ? pad_left(column.heads[line], widths[c].whole)
                                                    : pad_right(column.heads[line], widths[c].whole));
    }
    if (heads.find_first_not_of(' ') != std::string::npos) text += trimmed(heads);
  }
  std::string rule;
  for (std::size_t c = 0; c < grid.columns.size(); ++c)
    for (std::size_t i = 0; i < widths[c].whole + (c == 0 ? 0 : 2); ++i) rule += i < 2 && c > 0 ? " " : "─";
  return text + rule + "\n";
}

std::string section(const std::string& title, const std::vector<std::string>& lines, const std::string& indent) {
  std::string text = lines.empty() ? "" : "\n" + title;
  for (const auto& line : lines) text += indent + line + "\n";
  return text;
}

std::string print_text(const Table& table) {
  const auto grid = make_grid(table);
  std::vector<Widths> widths;
  for (const auto& column : grid.columns) widths.push_back(widths_of(column));
  std::string text = table.rows.empty() ? "" : text_heads(grid, widths);
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    std::string line;
    for (std::size_t c = 0; c < grid.columns.size(); ++c)
      line += (c == 0 ? "" : "  ") + text_cell(grid.columns[c], grid.columns[c].cells[row], widths[c]);
    text += trimmed(line);
  }
  text += section("records\n", grid.footnotes, "  ");
  text += section("not ok\n", problems(table), "  ");
  return text + section("", table.notes, "");
}

// --- Markdown and LaTeX --------------------------------------------------------------------------------------------------

std::string replaced(const std::string& text, const std::vector<std::pair<char, std::string>>& replacements) {
  std::string result;
  for (const char c : text) {
    const auto found =
        std::find_if(replacements.begin(), replacements.end(), [c](const auto& pair) { return pair.first == c; });
    result += found == replacements.end() ? std::string(1, c) : found->second;
  }
  return result;
}

std::string markdown(const std::string& text) {
  return replaced(text, {{'|', "\\|"}, {'\n', " "}, {'*', "\\*"}, {'<', "&lt;"}});
}

std::string latex(const std::string& text) {
  return replaced(text, {{'\\', "\\textbackslash{}"},
                         {'&', "\\&"},
                         {'%', "\\%"},
                         {'$', "\\$"},
                         {'#', "\\#"},
                         {'_', "\\_"},
                         {'{', "\\{"},
                         {'}', "\\}"},
                         {'~', "\\textasciitilde{}"},
                         {'^', "\\textasciicircum{}"},
                         {'\n', " "}});
}

std::string head_in_one_line(const GridColumn& column) {
  const auto& heads = column.heads;
  return (heads[0].empty() ? "" : heads[0] + ": ") + heads[1] + (heads[2].empty() ? "" : " (" + heads[2] + ")");
}

std::string print_markdown(const Table& table) {
  const auto grid = make_grid(table);
  std::string text = "|";
  std::string rule = "|";
  for (const auto& column : grid.columns) {
    text += " " + markdown(head_in_one_line(column)) + " |";
    rule += column.right ? "---:|" : "---|";
  }
  text += "\n" + rule + "\n";
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    text += "|";
    for (const auto& column : grid.columns) {
      const auto& cell = column.cells[row];
      text += " " + markdown(cell.text) + (cell.half.empty() ? "" : " ± " + cell.half) + " |";
    }
    text += "\n";
  }
  auto lines = problems(table);
  for (auto& line : lines) line = markdown(line);
  // Ids in footnotes must not read as links, so each is code.
  auto footnotes = grid.footnotes;
  for (auto& line : footnotes) line = fmt::format("`{}`", line);
  text += section("Records:\n\n", footnotes, "- ") + section("Not ok:\n\n", lines, "- ");
  for (const auto& note : table.notes) text += "\n" + markdown(note) + "\n";
  return text;
}

std::string print_latex(const Table& table) {
  const auto grid = make_grid(table);
  // The records go to comments: a printed table has no room for them, and its source still names each.
  std::string alignment;
  std::vector<std::string> heads;
  for (std::size_t c = 0; c + 1 < grid.columns.size(); ++c) {
    alignment += grid.columns[c].right ? 'r' : 'l';
    heads.push_back(latex(head_in_one_line(grid.columns[c])));
  }
  std::string text = "% needs \\usepackage{booktabs}\n\\begin{tabular}{" + alignment + "}\n\\toprule\n" +
                     join(heads, " & ") + " \\\\\n\\midrule\n";
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    std::vector<std::string> cells;
    for (std::size_t c = 0; c + 1 < grid.columns.size(); ++c) {
      const auto& cell = grid.columns[c].cells[row];
      cells.push_back(latex(cell.text) + (cell.half.empty() ? "" : " $\\pm$ " + latex(cell.half)));
    }
    const auto ids = grid.footnotes.empty() ? grid.columns.back().cells[row].text : grid.footnotes[row];
    for (std::size_t c = 0; c < cells.size(); ++c) {  // join() would drop the separator after an empty first cell
      if (c > 0) text += " & ";
      text += cells[c];
    }
    text += " \\\\ % " + ids + "\n";
  }
  text += "\\bottomrule\n\\end{tabular}\n";
  for (const auto& line : problems(table)) text += "% " + line + "\n";
  for (const auto& note : table.notes) text += "% " + note + "\n";
  return text;
}

// --- CSV and JSON: every figure in full -----------------------------------------------------------------------------------

std::string csv(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  return "\"" + replaced(text, {{'"', "\"\""}}) + "\"";
}

std::string csv_number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : ""; }

void csv_heads(std::vector<std::string>& line, const Table& table, std::size_t column) {
  const auto lead = table.column_axis.empty() ? "" : table.column_axis + "=" + column_label(table, column) + " ";
  for (const auto& metric : table.metrics) {
    const auto unit = metric.unit.empty() || metric.unit == "1" ? "" : " (" + metric.unit + ")";
    line.push_back(fmt::format("{}{}{}", lead, metric.name, unit));
    for (const auto* part : {" low", " high", " ratio", " verdict"})
      line.push_back(fmt::format("{}{}{}", lead, metric.name, part));
  }
  for (const auto* part : {"status", "ok", "records"}) line.push_back(lead + part);
}

void csv_cell(std::vector<std::string>& line, const TableCell& cell) {
  constexpr double none = std::numeric_limits<double>::quiet_NaN();
  for (const auto& figure : cell.figures) {
    line.push_back(csv_number(figure.present ? figure.value : none));
    line.push_back(csv_number(figure.interval ? figure.interval->first : none));
    line.push_back(csv_number(figure.interval ? figure.interval->second : none));
    line.push_back(csv_number(figure.ratio));
    line.push_back(to_string(figure.verdict));
  }
  line.push_back(cell.status ? to_string(*cell.status) : "");
  line.push_back(cell.status ? fmt::format("{}/{}", cell.ok, cell.records.size()) : "");
  line.push_back(short_ids(cell, std::string::npos));
}

std::string print_csv(const Table& table) {
  auto line = table.row_axes;
  for (std::size_t column = 0; column < cells_in_row(table); ++column) csv_heads(line, table, column);
  std::string text;
  const auto finish = [&] {
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (i > 0) text += ',';
      text += csv(line[i]);
    }
    text += "\n";
    line.clear();
  };
  finish();
  for (const auto& row : table.rows) {
    for (const auto& value : row.values) line.push_back(value.is_null() ? "" : display_value(value));
    for (const auto& cell : row.cells) csv_cell(line, cell);
    finish();
  }
  return text;
}

Json figure_to_json(const TableMetric& metric, const TableFigure& figure) {
  Json json = {{"unit", metric.unit}, {"value", nullptr}, {"interval", nullptr}, {"ratio", nullptr}, {"verdict", nullptr}};
  if (figure.present) json["value"] = finite_or_null(figure.value);
  if (figure.interval) json["interval"] = {finite_or_null(figure.interval->first), finite_or_null(figure.interval->second)};
  json["ratio"] = finite_or_null(figure.ratio);
  if (figure.verdict != Verdict::none) json["verdict"] = to_string(figure.verdict);
  return json;
}

Json cell_to_json(const Table& table, const TableCell& cell, std::size_t column) {
  Json json = Json::object();
  if (!table.column_axis.empty()) json[table.column_axis] = table.column_values[column];
  json["status"] = cell.status ? Json(to_string(*cell.status)) : Json(nullptr);
  json["records"] = Json::array();
  Json reasons = Json::object();
  for (const auto& record : cell.records) {
    json["records"].push_back(record.id);
    if (record.status != Status::ok) reasons[record.id] = record.reason;
  }
  json["reasons"] = reasons;
  json["metrics"] = Json::object();
  for (std::size_t m = 0; m < table.metrics.size(); ++m) {
    // One name in two units is two metrics; the second then carries its unit in its name.
    const auto& metric = table.metrics[m];
    const auto key = json["metrics"].contains(metric.name) ? metric.name + " (" + metric.unit + ")" : metric.name;
    json["metrics"][key] = figure_to_json(metric, cell.figures[m]);
  }
  return json;
}

std::string print_json(const Table& table) {
  Json json = {{"rows", Json::array()}, {"notes", table.notes}};
  for (const auto& row : table.rows) {
    Json axes = Json::object();
    for (std::size_t axis = 0; axis < table.row_axes.size(); ++axis) axes[table.row_axes[axis]] = row.values[axis];
    Json cells = Json::array();
    for (std::size_t column = 0; column < row.cells.size(); ++column) {
      cells.push_back(cell_to_json(table, row.cells[column], column));
    }
    json["rows"].push_back({{"axes", axes}, {"cells", cells}});
  }
  return pretty(json);
}

}  // namespace

std::string display_ratio(const TableMetric& metric, const TableFigure& figure) {
  if (figure.verdict != Verdict::better && figure.verdict != Verdict::worse) return to_string(figure.verdict);
  const bool better = figure.verdict == Verdict::better;
  const auto quantity = quantity_of(metric.unit);
  std::string word = better == metric.higher_is_better ? "higher" : "lower";
  if (quantity == Quantity::time || quantity == Quantity::rate) word = better ? "faster" : "slower";
  else if (quantity == Quantity::memory || quantity == Quantity::operations) word = better ? "less" : "more";
  if (!std::isfinite(figure.ratio) || figure.ratio <= 0) return word;
  const double times = std::max(figure.ratio, 1 / figure.ratio);
  const int decimals = times < 1.0095 ? 3 : times < 10 ? 2 : times < 100 ? 1 : 0;
  return fmt::format("{:.{}f}x {}", times, decimals, word);
}

std::string print_table(const Table& table, const std::string& format) {
  if (format == "text") return print_text(table);
  if (format == "md") return print_markdown(table);
  if (format == "csv") return print_csv(table);
  if (format == "latex") return print_latex(table);
  if (format == "json") return print_json(table);
  throw UsageError(unknown_name_message("format", format, {"text", "md", "csv", "latex", "json"}));
}

}  // namespace transpool
