#include "runners/report/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace transpool {
namespace {

using testing::HasSubstr;

Summary time_of(double value, double half, std::vector<double> samples = {}) {
  Summary summary{.name = "time", .unit = "ms", .value = value};
  summary.interval = {value - half, value + half};
  summary.samples = std::move(samples);
  summary.statistic = "median";
  return summary;
}

Summary exact(const std::string& name, double value) { return {.name = name, .unit = "MiB", .value = value}; }

Summary rouge_of(const std::vector<double>& scores) {
  Summary summary{.name = "rouge1", .unit = "%", .higher_is_better = true};
  for (const double score : scores) summary.value += score / static_cast<double>(scores.size());
  summary.interval = {summary.value - 10, summary.value + 10};
  summary.samples = scores;
  summary.statistic = "mean";
  return summary;
}

Record record_of(const std::string& id, const std::string& pooling, std::vector<Summary> summaries) {
  Record record;
  record.id = id;
  record.axes["pooling"] = pooling;
  record.summaries = std::move(summaries);
  return record;
}

Report report_of(std::vector<Record> records) {
  Report report;
  report.records = std::move(records);
  return report;
}

std::string verdict(const Summary& base, const Summary& current) { return to_string(judge(base, current).change); }

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Judge, OverlappingIntervalsAreTheSame) {
  EXPECT_EQ(verdict(time_of(10, 0.5), time_of(10.4, 0.5)), "SAME");
  EXPECT_EQ(verdict(time_of(10, 3), time_of(12, 0.1)), "SAME") << "the new figure lies in the base's interval";
}

TEST(Judge, IntervalsThatAreApartAreFastOrSlow) {
  EXPECT_EQ(verdict(time_of(10, 0.1), time_of(11, 0.1)), "SLOW");
  EXPECT_EQ(verdict(time_of(11, 0.1), time_of(10, 0.1)), "FAST");
}

TEST(Judge, WideIntervalsThatHideALargeDifferenceAreAmbiguous) {
  EXPECT_EQ(verdict(time_of(10, 1), time_of(11.5, 0.9)), "AMBG");
  EXPECT_THAT(judge(time_of(10, 1), time_of(11.5, 0.9)).reason, HasSubstr("wide"));
}

TEST(Judge, NoiseOfTheSamplesDecidesWhereIntervalsAreApart) {
  const std::vector<double> noisy = {8, 9, 10, 11, 12, 13};
  const std::vector<double> quiet = {10.9, 11, 11, 11, 11, 11.1};
  EXPECT_EQ(verdict(time_of(10.5, 0.1, noisy), time_of(11.2, 0.1, noisy)), "SAME") << "inside the noise of both";
  EXPECT_EQ(verdict(time_of(10.5, 0.1, noisy), time_of(11.2, 0.1, quiet)), "AMBG") << "inside the noise of one";
  EXPECT_EQ(verdict(time_of(10.5, 0.1, noisy), time_of(14, 0.1, quiet)), "SLOW");
}

TEST(Judge, ADifferenceThatNobodyActsOnIsTheSame) {
  EXPECT_EQ(verdict(time_of(10, 0.001), time_of(10.04, 0.001)), "SAME");
  EXPECT_EQ(verdict(exact("peak_memory", 1000), exact("peak_memory", 1004)), "SAME");
}

TEST(Judge, ExactFiguresNeedNoInterval) {
  EXPECT_EQ(verdict(exact("peak_memory", 100), exact("peak_memory", 120)), "SLOW");
  EXPECT_EQ(verdict(exact("peak_memory", 100), exact("peak_memory", 80)), "FAST");
  EXPECT_EQ(verdict(exact("peak_memory", 0), exact("peak_memory", 0)), "SAME");
  EXPECT_EQ(verdict(exact("peak_memory", 0), exact("peak_memory", 1)), "SLOW");
}

TEST(Judge, OtherFiguresWithoutIntervalMustDifferByMore) {
  const auto accuracy = [](double value) {
    return Summary{.name = "token_accuracy", .unit = "%", .value = value, .higher_is_better = true};
  };
  EXPECT_EQ(verdict(accuracy(30), accuracy(29.2)), "AMBG");
  EXPECT_EQ(verdict(accuracy(30), accuracy(20)), "SLOW");
}

TEST(Judge, WithOneIntervalOrNoNumberNothingCanBeSaid) {
  EXPECT_EQ(verdict(exact("time", 10), time_of(20, 1)), "AMBG");
  EXPECT_EQ(verdict(time_of(10, 1), time_of(std::nan(""), 1)), "AMBG");
}

TEST(Judge, HigherIsBetterTurnsTheVerdictRound) {
  auto low = exact("rouge1", 20), high = exact("rouge1", 30);
  low.higher_is_better = high.higher_is_better = true;
  EXPECT_EQ(verdict(low, high), "FAST");
  EXPECT_EQ(verdict(high, low), "SLOW");
}

TEST(Judge, MeansOverTheSameDocumentsArePaired) {
  const std::vector<double> scores = {10, 50, 20, 60, 30, 70, 15, 55};
  auto better = scores, mixed = scores;
  for (auto& score : better) score += 3;
  for (std::size_t i = 0; i < mixed.size(); ++i) mixed[i] += i % 2 == 0 ? 9 : -5;
  EXPECT_EQ(verdict(rouge_of(scores), rouge_of(better)), "FAST") << "3 points on every document, in wide intervals";
  EXPECT_EQ(verdict(rouge_of(better), rouge_of(scores)), "SLOW");
  EXPECT_EQ(verdict(rouge_of(scores), rouge_of(mixed)), "SAME");
}

TEST(Compare, CellsMeetByIdentityElseByAxesAndSeed) {
  const auto base = report_of({record_of("a", "x", {time_of(10, 0.1)}), record_of("b", "y", {time_of(5, 0.1)}),
                               record_of("c", "z", {time_of(5, 0.1)})});
  const auto current = report_of({record_of("a", "renamed", {time_of(10, 0.1)}), record_of("d", "y", {time_of(6, 0.1)}),
                                  record_of("e", "w", {time_of(5, 0.1)})});
  const auto comparison = compare_reports(base, current);
  ASSERT_EQ(comparison.cells.size(), 2U);
  EXPECT_EQ(comparison.cells[0].base->id, "a");
  EXPECT_EQ(comparison.cells[1].base->id, "b");
  EXPECT_EQ(comparison.cells[1].current->id, "d");
  ASSERT_EQ(comparison.only_base.size(), 1U);
  EXPECT_EQ(comparison.only_base[0]->id, "c");
  ASSERT_EQ(comparison.only_current.size(), 1U);
  EXPECT_EQ(comparison.only_current[0]->id, "e");
  EXPECT_TRUE(comparison.regressed());
}

TEST(Compare, AnotherSeedIsAnotherCell) {
  auto other = record_of("b", "x", {time_of(10, 0.1)});
  other.seed = 1;
  EXPECT_THAT(message_of([&] { compare_reports(report_of({record_of("a", "x", {time_of(10, 0.1)})}), report_of({other})); }),
              HasSubstr("no cell in common"));
}

TEST(Compare, ACellThatBrokeIsARegressionAndOneThatWasBrokenIsNot) {
  auto failed = record_of("a", "x", {});
  failed.status = Status::oom;
  failed.reason = "out of memory";
  const auto good = record_of("a", "x", {time_of(10, 0.1)});
  EXPECT_TRUE(compare_reports(report_of({good}), report_of({failed})).regressed());
  EXPECT_FALSE(compare_reports(report_of({failed}), report_of({good})).regressed());
  EXPECT_FALSE(compare_reports(report_of({failed}), report_of({failed})).regressed());
}

TEST(Compare, OnlyMetricsOfOneUnitOnBothSidesAreCompared) {
  auto seconds = time_of(10, 0.1);
  seconds.unit = "s";
  const auto comparison = compare_reports(report_of({record_of("a", "x", {time_of(10, 0.1), exact("peak_memory", 5)})}),
                                          report_of({record_of("a", "x", {seconds, exact("peak_memory", 5)})}));
  ASSERT_EQ(comparison.cells[0].figures.size(), 1U);
  EXPECT_EQ(comparison.cells[0].figures[0].current.name, "peak_memory");
}

TEST(Compare, MetricsCanBeChosenAndUnknownOnesAreRefused) {
  const auto report = report_of({record_of("a", "x", {time_of(10, 0.1), exact("peak_memory", 5)})});
  EXPECT_EQ(compare_reports(report, report, {"time"}).cells[0].figures.size(), 1U);
  EXPECT_THAT(message_of([&] { compare_reports(report, report, {"tyme"}); }), HasSubstr("did you mean \"time\"?"));
}

TEST(Compare, DifferentSettingsAndMachinesAreNoted) {
  auto base = report_of({record_of("a", "x", {time_of(10, 0.1)})});
  auto current = report_of({record_of("b", "x", {time_of(10, 0.1)})});
  base.records[0].configuration = {{"batch", 2}};
  current.records[0].configuration = {{"batch", 4}};
  base.environment = {{"cpu", "one"}};
  current.environment = {{"cpu", "other"}};
  const auto notes = compare_reports(base, current).notes;
  ASSERT_EQ(notes.size(), 2U);
  EXPECT_THAT(notes[0], HasSubstr("batch"));
  EXPECT_THAT(notes[1], HasSubstr("machines"));
}

TEST(Compare, EveryFormatShowsTheNumbersAndTheRule) {
  const auto base = report_of({record_of("a", "x", {time_of(10, 0.1)})});
  const auto current = report_of({record_of("a", "x", {time_of(12, 0.1)})});
  const auto comparison = compare_reports(base, current);
  for (const auto* format : {"text", "md"}) {
    const auto text = print_comparison(comparison, format);
    for (const auto* part : {"SLOW", "pooling=x", "10.0", "12.0", "+20.0 %", "the intervals are apart", "FAST and SLOW"})
      EXPECT_THAT(text, HasSubstr(part)) << format;
  }
  EXPECT_THAT(print_comparison(comparison, "csv"), HasSubstr("SLOW,pooling=x seed=0,time,ms,10,9.9,10.1,12,11.9,12.1,0.2,"));
  const auto json = Json::parse(print_comparison(comparison, "json"));
  EXPECT_EQ(json["regressed"], true);
  EXPECT_EQ(json["cells"][0]["figures"][0]["verdict"], "SLOW");
  EXPECT_EQ(json["cells"][0]["figures"][0]["new"]["value"], 12);
  EXPECT_THAT(message_of([&] { print_comparison(comparison, "jsn"); }), HasSubstr("did you mean \"json\"?"));
}

TEST(Compare, AReportIsTheSameAsItself) {
  const auto report = read_report(std::string(TEST_FOLDER) + "/runners/golden/report/quickstart.json");
  const auto comparison = compare_reports(report, report);
  EXPECT_FALSE(comparison.regressed());
  EXPECT_EQ(comparison.cells.size(), report.records.size());
  for (const auto& cell : comparison.cells)
    for (const auto& figure : cell.figures)
      EXPECT_EQ(figure.judgement.change, std::isfinite(figure.base.value) ? Change::same : Change::ambiguous);
}

}  // namespace
}  // namespace transpool
