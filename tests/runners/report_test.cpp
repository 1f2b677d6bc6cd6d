#include "runners/report/report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>

#include "runners/report/fields.h"
#include "runners/report/show.h"

namespace transpool {
namespace {

namespace fs = std::filesystem;

const fs::path samples = fs::path(TEST_FOLDER) / "runners/golden/report";

/// A fresh folder that is gone after the test.
class ReportTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("transpool_report_test_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }

  fs::path folder_;
};

std::string content(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

Json sample() { return to_json(read_report(samples / "quickstart.json")); }

/// What the reader says of the sample report after a change to it.
std::string complaint(const std::function<void(Json&)>& change) {
  auto json = sample();
  change(json);
  return message_of([&] { report_from_json(json, Where("r.json")); });
}

TEST_F(ReportTest, WrittenAndReadAgainIsTheSame) {
  const auto json = sample();
  write_report(folder_ / "report.json", report_from_json(json));
  EXPECT_EQ(to_json(read_report(folder_ / "report.json")), json);
  EXPECT_EQ(to_json(read_report(folder_)), json) << "a folder stands for its report.json";
}

TEST_F(ReportTest, KeepsTheOrderOfAxesAndRecords) {
  const auto report = read_report(samples / "encoders.json");
  EXPECT_EQ(report.records.size(), 40U);
  EXPECT_EQ(report.records[0].axes.begin().key(), "encoder");
  EXPECT_EQ(report.records[1].seed, 1);
  EXPECT_EQ(report.records[6].status, Status::oom);
}

TEST_F(ReportTest, ValuesThatAreNotFiniteBecomeNullAndNan) {
  Summary summary{"loss", "1", std::numeric_limits<double>::infinity()};
  summary.samples = {1, std::nan("")};
  summary.interval = {{0.5, std::numeric_limits<double>::infinity()}};
  const auto json = to_json(summary);
  EXPECT_TRUE(json["value"].is_null());
  EXPECT_TRUE(json["samples"][1].is_null());
  const auto back = summary_from_json(json);
  EXPECT_TRUE(std::isnan(back.value));
  EXPECT_TRUE(std::isnan(back.samples[1]));
  EXPECT_EQ(back.interval->first, 0.5);
  EXPECT_TRUE(std::isnan(back.interval->second));
}

TEST_F(ReportTest, AReasonThatIsNoUtf8IsStillJson) {
  Record record;
  record.id = "a";
  record.status = Status::crashed;
  record.reason = "last words: \xff\xfe";
  EXPECT_EQ(record_from_json(Json::parse(to_json(record).dump())).reason, "last words: \xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_F(ReportTest, EveryStatusHasAName) {
  for (const auto* name : {"ok", "oom", "timeout", "crashed", "failed", "incorrect", "unsupported", "skipped"})
    EXPECT_EQ(to_string(status_from_string(name)), name);
  EXPECT_EQ(message_of([] { status_from_string("time-out"); }).substr(0, 54),
            "unknown status \"time-out\"; did you mean \"timeout\"? kno");
}

TEST_F(ReportTest, ErrorsNameFilePointerAndNearestKey) {
  EXPECT_EQ(complaint([](Json& r) { r["records"][2]["summaries"][0]["vlue"] = 1; }).substr(0, 78),
            "r.json: /records/2/summaries/0/vlue: unknown key \"vlue\"; did you mean \"value\"?");
  EXPECT_EQ(complaint([](Json& r) { r["records"][1]["summaries"][1]["value"] = "fast"; }),
            "r.json: /records/1/summaries/1/value: must be a number (or null for one that is not finite), not \"fast\"");
  EXPECT_EQ(complaint([](Json& r) { r["records"][0].erase("status"); }), "r.json: /records/0: lacks the key \"status\"");
  EXPECT_EQ(complaint([](Json& r) { r["records"][3]["reason"] = ""; }),
            "r.json: /records/3/reason: must say why the status is failed");
  EXPECT_EQ(complaint([](Json& r) { r["records"][4]["id"] = r["records"][1]["id"]; }),
            "r.json: /records/4/id: \"" + sample()["records"][1]["id"].get<std::string>() + "\" is the id of record 1 too");
  EXPECT_EQ(complaint([](Json& r) {
              r["records"][0]["summaries"][0]["interval"] = {3, 2};
            }),
            "r.json: /records/0/summaries/0/interval: its low end is above its high end");
}

TEST_F(ReportTest, ALaterSchemaIsRefusedInWords) {
  EXPECT_EQ(complaint([](Json& r) { r["schema_version"] = 2; }),
            "r.json: /schema_version: is 2, but this program reads schemas up to 1: use a newer transpool");
}

TEST_F(ReportTest, FilesThatAreNoReport) {
  EXPECT_EQ(message_of([&] { read_report(folder_ / "none.json"); }),
            (folder_ / "none.json").string() + ": there is no such file");
  EXPECT_EQ(message_of([&] { read_report(folder_); }), folder_.string() + ": holds no report.json");
  const auto cut = write("cut.json", "{\"schema_version\": 1,");
  EXPECT_TRUE(message_of([&] { read_report(cut); }).starts_with(cut.string() + ": is not JSON: parse error at line 1"));
  EXPECT_EQ(message_of([&] { read_report(write("list.json", "[]")); }),
            (folder_ / "list.json").string() + ": must be an object, not []");
}

TEST_F(ReportTest, AFewKeysAreEnoughToRead) {
  const auto report = report_from_json(Json::parse(R"({"schema_version": 1, "records": [
      {"id": "a", "axes": {}, "status": "ok", "reason": "", "summaries": [{"name": "time", "value": 2}]}]})"));
  EXPECT_EQ(find_summary(report.records[0], "time")->value, 2);
  EXPECT_EQ(find_summary(report.records[0], "memory"), nullptr);
}

TEST_F(ReportTest, ReplacingLeavesNothingElseBehind) {
  const auto path = write("report.json", "old");
  write_atomically(path, "new");
  EXPECT_EQ(content(path), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  EXPECT_THROW(write_atomically(folder_ / "absent" / "report.json", "x"), UsageError);
  fs::create_directory(folder_ / "taken");
  EXPECT_THROW(write_atomically(folder_ / "taken", "x"), UsageError);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 2) << "a temporary file was left";
}

TEST_F(ReportTest, AListOfSamplesIsOneLine) {
  EXPECT_EQ(pretty(Json::parse(R"({"a": [1, 2.5, null], "b": [], "c": [{"d": {}}]})")),
            "{\n  \"a\": [1, 2.5, null],\n  \"b\": [],\n  \"c\": [\n    {\n      \"d\": {}\n    }\n  ]\n}\n");
}

TEST_F(ReportTest, RecordsAreFoundByTheBeginningOfTheirId) {
  const auto report = read_report(samples / "encoders.json");
  const auto& record = report.records[5];
  EXPECT_EQ(&find_record(report, record.id), &record);
  EXPECT_EQ(&find_record(report, record.id.substr(0, 8)), &record);
  EXPECT_TRUE(message_of([&] { find_record(report, ""); }).starts_with("\"\" begins the ids of 40 records:"));
  auto wrong = record.id.substr(0, 8);
  wrong[3] = 'x';
  EXPECT_EQ(message_of([&] { find_record(report, wrong); }),
            "no record's id begins with \"" + wrong + "\"; did you mean \"" + record.id + "\"?");
}

TEST_F(ReportTest, ShowTellsEverythingAndHowToMeasureAgain) {
  const auto report = read_report(samples / "quickstart.json");
  const auto& failed = report.records[3];
  const auto text = show_record(report, failed, "my runs/r.json");
  for (const auto& part : {std::string("the loss is not finite after step 3"), report.records[1].id,
                           std::string("GCC 12.2.0"), "transpool rerun 'my runs/r.json' " + failed.id})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  const auto timed = show_record(report, report.records[0], "r.json");
  for (const auto* part :
       {"median, 95 % interval", "11 samples", "Wall time of one forward and backward pass", "higher is better"})
    EXPECT_NE(timed.find(part), std::string::npos) << part << "\n" << timed;
  const auto list = list_records(report, "r.json");
  EXPECT_NE(list.find("10 records, 9 ok"), std::string::npos) << list;
}

}  // namespace
}  // namespace transpool
