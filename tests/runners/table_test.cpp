#include "runners/report/table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <sstream>

namespace transpool {
namespace {

const std::string samples = std::string(TEST_FOLDER) + "/runners/golden/report/";

Summary time_of(double value, double half) { return {"time", "ms", value, false, {{value - half, value + half}}}; }

/// A report whose records are the cells of one axis `pooling`; the first is the baseline of all.
NamedReport small_report(const std::vector<std::pair<std::string, Summary>>& cells) {
  NamedReport named{"small", {}};
  for (const auto& [pooling, summary] : cells) {
    Record record;
    record.id = "id-" + pooling;
    record.axes["pooling"] = pooling;
    record.baseline = "id-" + cells.front().first;
    record.summaries = {summary};
    named.report.records.push_back(record);
  }
  return named;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

std::vector<std::string> metric_names(const Table& table) {
  std::vector<std::string> names;
  for (const auto& metric : table.metrics) names.push_back(metric.name);
  return names;
}

class SampleTable : public testing::Test {
 protected:
  std::vector<NamedReport> quickstart = read_named_reports({samples + "quickstart.json"});
  std::vector<NamedReport> encoders = read_named_reports({samples + "encoders.json"});
};

TEST(Display, VariantsAreCompact) {
  EXPECT_EQ(display_value(Json::parse(R"({"name": "successive_halving", "base": 20})")), "successive_halving(base=20)");
  EXPECT_EQ(display_value(Json::parse(R"({"name": "a", "b": {"name": "c", "d": [1, 2]}, "e": true})")),
            "a(b=c(d=[1, 2]), e=true)");
  EXPECT_EQ(display_value(Json::parse(R"({"0": 2048, "1": 512})")), "{0=2048, 1=512}");
  EXPECT_EQ(display_value(Json::parse(R"({"name": "hard_topk"})")), "hard_topk");
}

TEST(Display, DigitsFollowTheInterval) {
  EXPECT_EQ(display_with_interval(12.34567, {{12.3334, 12.358}}), "12.346 ± 0.012");
  EXPECT_EQ(display_with_interval(12.34567, {{11.7, 12.9}}), "12.3 ± 0.6");
  EXPECT_EQ(display_with_interval(1234.5, {{1034.5, 1434.5}}), "1234 ± 200");
  EXPECT_EQ(display_with_interval(12.34567, {}), "12.35");
  EXPECT_EQ(display_with_interval(480, {{480, 480}}), "480");
  EXPECT_EQ(display_with_interval(123456, {}), "123456");
  EXPECT_EQ(display_with_interval(0.000012345, {}), "1.234e-05");
  EXPECT_EQ(display_with_interval(std::nan(""), {}), "nan");
}

TEST(Display, WidthCountsCharacters) {
  EXPECT_EQ(display_width("± µs"), 4U);
  EXPECT_EQ(display_width("\u6f22"), 2U);
  EXPECT_EQ(display_width("e\u0301"), 1U);
  EXPECT_EQ(pad_left("±", 3), "  ±");
  EXPECT_EQ(first_line("one\ntwo", 10), "one…");
  EXPECT_EQ(first_line("abcdef", 4), "abc…");
  EXPECT_EQ(first_line("abcd", 4), "abcd");
}

TEST(Display, SparklineShowsTheDistribution) {
  EXPECT_EQ(sparkline({1, 1, 1, 1, 2, 3}, 3), "█▂▂");
  EXPECT_EQ(sparkline({1, 1}), "");
}

TEST(Table, ADifferenceInsideTheIntervalsIsSame) {
  const auto report =
      small_report({{"a", time_of(10, 0.5)}, {"b", time_of(10.4, 0.5)}, {"c", time_of(5, 0.1)}, {"d", time_of(20, 1)}});
  const auto table = make_table({report}, {});
  std::vector<std::string> ratios;
  for (const auto& row : table.rows) ratios.push_back(display_ratio(table.metrics[0], row.cells[0].figures[0]));
  EXPECT_EQ(ratios, (std::vector<std::string>{"baseline", "same", "2.00x faster", "2.00x slower"}));
}

TEST(Table, WordsFollowTheUnitAndTheDirection) {
  TableFigure better{true, 1, {}, Verdict::better, 1.5};
  EXPECT_EQ(display_ratio({"memory", "MiB", "", false}, better), "1.50x less");
  EXPECT_EQ(display_ratio({"rate", "tokens/s", "", true}, better), "1.50x faster");
  EXPECT_EQ(display_ratio({"rouge1", "%", "", true}, better), "1.50x higher");
  EXPECT_EQ(display_ratio({"loss", "1", "", false}, better), "1.50x lower");
  EXPECT_EQ(display_ratio({"loss", "1", "", false}, {true, 1, {}, Verdict::worse, 0.5}), "2.00x higher");
  EXPECT_EQ(display_ratio({"time", "ms", "", false}, {true, 1, {}, Verdict::better, 1.002}), "1.002x faster");
}

TEST_F(SampleTable, RowsAreTheAxesThatVary) {
  EXPECT_EQ(make_table(quickstart, {}).row_axes, std::vector<std::string>{"encoder"});
  const auto table = make_table(encoders, {});
  EXPECT_EQ(table.row_axes, (std::vector<std::string>{"encoder", "source_length"}));
  EXPECT_EQ(table.rows.size(), 20U);
}

TEST_F(SampleTable, ChoosesOneMetricOfEachKindFirst) {
  const auto table = make_table(quickstart, {});
  EXPECT_EQ(metric_names(table),
            (std::vector<std::string>{"time", "peak_memory", "flops_model", "flops_executed", "rouge1"}));
  EXPECT_EQ(table.notes.back(), "also measured, shown with --metrics: batch (always 4), rouge2");
  EXPECT_EQ(metric_names(make_table(quickstart, {{}, "", {"rouge2", "time"}})),
            (std::vector<std::string>{"rouge2", "time"}));
}

TEST_F(SampleTable, SeedsAreAveragedWithTheirOwnInterval) {
  const auto table = make_table(quickstart, {{}, "", {"time"}});
  const auto& cell = table.rows[0].cells[0];
  ASSERT_EQ(cell.records.size(), 2U);
  const double a = find_summary(quickstart[0].report.records[0], "time")->value;
  const double b = find_summary(quickstart[0].report.records[1], "time")->value;
  EXPECT_DOUBLE_EQ(cell.figures[0].value, (a + b) / 2);
  // With two values the standard error of the mean is half their distance.
  EXPECT_NEAR(cell.figures[0].interval->second - cell.figures[0].value, 12.706 * std::abs(a - b) / 2, 1e-9);
  EXPECT_EQ(make_table(quickstart, {{"encoder", "seed"}, "", {"time"}}).rows.size(), 10U);
}

TEST_F(SampleTable, ACellThatIsNotOkShowsItsStatusAndReason) {
  const auto text = print_table(make_table(encoders, {{}, "", {"time", "rouge1"}}), "text");
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line) && line.find("8192") == std::string::npos) {
  }
  EXPECT_NE(line.find("oom"), std::string::npos) << text;
  EXPECT_NE(text.find("oom: tried to allocate 12.00 GiB"), std::string::npos) << text;
  EXPECT_NE(text.find("(1 of 2)"), std::string::npos) << text;
  EXPECT_NE(text.find("baseline oom"), std::string::npos) << text;
}

TEST_F(SampleTable, UnlikeCellsAreNeverAveraged) {
  const auto table = make_table(encoders, {{"encoder"}, "", {"time"}});
  EXPECT_EQ(table.row_axes, (std::vector<std::string>{"encoder", "source_length"}));
  EXPECT_NE(table.notes.back().find("source_length varies within the rows"), std::string::npos);
}

TEST_F(SampleTable, OneAxisStandsInColumns) {
  const auto table = make_table(encoders, {{}, "source_length", {"time"}});
  EXPECT_EQ(table.row_axes, std::vector<std::string>{"encoder"});
  EXPECT_EQ(table.column_values, (std::vector<Json>{1024, 2048, 4096, 8192}));
  ASSERT_EQ(table.rows.size(), 5U);
  EXPECT_EQ(*table.rows[0].cells[3].status, Status::oom);
  const auto text = print_table(table, "text");
  EXPECT_NE(text.find("source_length=2048"), std::string::npos) << text;
  for (const auto& record : encoders[0].report.records)
    EXPECT_NE(text.find(record.id.substr(0, 8)), std::string::npos) << record.id << "\n" << text;
}

TEST_F(SampleTable, SeveralReportsAreToldApart) {
  const auto table = make_table({quickstart[0], encoders[0]}, {});
  EXPECT_EQ(table.row_axes.front(), "report");
  EXPECT_EQ(table.rows.size(), 25U);
  const auto twice = read_named_reports({samples + "quickstart.json", samples + "./quickstart.json"});
  EXPECT_NE(twice[0].name, twice[1].name);
}

TEST_F(SampleTable, EveryFormatNamesEveryRecord) {
  const auto table = make_table(quickstart, {});
  for (const auto* format : {"text", "md", "csv", "latex", "json"}) {
    const auto text = print_table(table, format);
    for (const auto& record : quickstart[0].report.records)
      EXPECT_NE(text.find(record.id.substr(0, 8)), std::string::npos) << format << "\n" << text;
  }
}

TEST_F(SampleTable, TextColumnsAreAligned) {
  std::istringstream lines(print_table(make_table(quickstart, {}), "text"));
  std::string line;
  std::size_t end = 0;
  for (int i = 0; i < 8 && std::getline(lines, line); ++i) {
    if (i < 3) continue;
    // The last column is the records: 17 characters, or fewer at no row of this table.
    if (end == 0) end = display_width(line);
    EXPECT_EQ(display_width(line), end) << line;
  }
}

TEST_F(SampleTable, CsvAndJsonHoldFullFigures) {
  const auto table = make_table(quickstart, {{}, "", {"time"}});
  const auto json = Json::parse(print_table(table, "json"));
  EXPECT_EQ(json["rows"][0]["axes"]["encoder"], "vanilla");
  EXPECT_EQ(json["rows"][0]["cells"][0]["metrics"]["time"]["value"], table.rows[0].cells[0].figures[0].value);
  EXPECT_EQ(json["rows"][1]["cells"][0]["status"], "failed");
  EXPECT_EQ(json["rows"][1]["cells"][0]["reasons"].size(), 1U);
  const auto csv = print_table(table, "csv");
  EXPECT_TRUE(csv.starts_with("encoder,time (ms),time low,time high,time ratio,time verdict,status,ok,records\nvanilla,"))
      << csv;
}

TEST(Table, MarkupIsEscaped) {
  const auto table = make_table({small_report({{"a|b_c", time_of(1, 0.1)}, {"d,\"e\"", time_of(2, 0.1)}})}, {});
  EXPECT_NE(print_table(table, "md").find("| a\\|b_c |"), std::string::npos);
  EXPECT_NE(print_table(table, "latex").find("a|b\\_c & "), std::string::npos);
  EXPECT_NE(print_table(table, "csv").find("\"d,\"\"e\"\"\","), std::string::npos);
}

TEST_F(SampleTable, UnknownNamesAreAnsweredWithTheNearest) {
  EXPECT_NE(message_of([&] {
              make_table(encoders, {{"encodr"}, "", {}});
            }).find("did you mean \"encoder\"?"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              make_table(encoders, {{}, "source_lenght", {}});
            }).find("did you mean \"source_length\"?"),
            std::string::npos);
  EXPECT_NE(message_of([&] { make_table(encoders, {{}, "", {"tine"}}); }).find("did you mean \"time\"?"), std::string::npos);
  EXPECT_NE(message_of([&] { make_table(encoders, {{"batch"}, "", {}}); }).find("it is fixed"), std::string::npos);
  EXPECT_NE(message_of([&] { print_table({}, "markdown"); }).find("known: text, md, csv, latex, json"), std::string::npos);
}

TEST(Table, NothingIsLostWhereNothingWorked) {
  auto report = small_report({{"a", time_of(1, 0.1)}, {"b", time_of(2, 0.1)}});
  for (auto& record : report.report.records) {
    record.status = Status::unsupported;
    record.reason = "no such device";
    record.summaries.clear();
  }
  const auto text = print_table(make_table({report}, {}), "text");
  EXPECT_NE(text.find("unsupported: no such device [id-a id-b]"), std::string::npos) << text;
  EXPECT_EQ(metric_names(make_table({report}, {{}, "", {"time"}})), std::vector<std::string>{"time"});
  EXPECT_EQ(print_table(make_table({{"empty", {}}}, {}), "text"), "\nthere are no records\n");
}

}  // namespace
}  // namespace transpool
