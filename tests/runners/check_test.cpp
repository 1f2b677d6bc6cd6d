#include "runners/report/report.h"
#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transpool {
namespace {

using testing::HasSubstr;

Json as_json(const Finished& finished) {
  const auto json = Json::parse(finished.output, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << finished.output;
  return json;
}

TEST(Check, AVariantAgreesWithItsReferenceInEveryDtype) {
  const auto check = run_transpool("check pooling hard_topk --device cpu --format json");
  EXPECT_EQ(check.code, 0) << check.output;
  const auto json = as_json(check);
  EXPECT_EQ(json["holds"], true);
  std::vector<std::string> dtypes;
  for (const auto& row : json["rows"]) {
    EXPECT_EQ(row["status"], "ok") << row;
    for (const auto* result : {"values", "gradient of x", "gradient of the scores"})
      EXPECT_LE(row["errors"][result].get<double>(), row["allowed"].get<double>());
    dtypes.push_back(row["dtype"]);
  }
  EXPECT_THAT(dtypes, testing::IsSupersetOf({"float64", "float32", "bfloat16", "float16"}));
}

TEST(Check, AnotherVariantWithTheSameResultIsTheSame) {
  EXPECT_EQ(run_transpool("check pooling successive_halving --against successive_halving_rounds --device cpu").code, 0);
  const auto attention = run_transpool("check attention full --against full_math --device cpu");
  EXPECT_EQ(attention.code, 0) << attention.output;
  EXPECT_THAT(attention.output, HasSubstr("gradient of q"));
}

TEST(Check, AnotherVariantWithAnotherResultIsFoundAndEndsWithOne) {
  const auto check = run_transpool(
      R"(check pooling '{"name": "hard_topk", "keep_order": false}' --against hard_topk --device cpu --format json)");
  EXPECT_EQ(check.code, 1) << check.output;
  EXPECT_EQ(as_json(check)["holds"], false);
  EXPECT_EQ(run_transpool("check pooling hard_topk --against successive_halving --device cpu").code, 1);
}

TEST(Check, AWrongCallNamesWhatIsAllowed) {
  for (const auto& [call, part] :
       {std::pair{"check poolng hard_topk", "did you mean \"pooling\"?"},
        std::pair{"check pooling hard_tpk", "did you mean \"hard_topk\"?"},
        std::pair{"check pooling hard_topk --against nothing", "--against"},
        std::pair{"check pooling hard_topk --device gpu", "known: cpu"},
        std::pair{"check pooling hard_topk --format jsn", "did you mean \"json\"?"},
        std::pair{"check pooling '{\"name\": \"hard_topk\", \"gradint\": 1}'", "gradient"},
        std::pair{"check pooling '{nonsense'", "is not JSON"}, std::pair{"check pooling", "KIND NAME"}}) {
    const auto finished = run_transpool(call);
    EXPECT_EQ(finished.code, 2) << call << "\n" << finished.output;
    EXPECT_THAT(finished.output, HasSubstr(part)) << call;
  }
}

class Rerun : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder_ / "e.json") << R"({"name": "e", "level": "operator", "measure": ["flops", "selection"],
      "fixed": {"batch": 2, "width": 8, "source_length": 16, "pooled_length": 4, "selection.draws": 2},
      "axes": {"pooling": ["hard_topk", {"name": "successive_halving", "base": 5}]}, "seeds": [3]})";
    const auto run = run_transpool("run " + (folder_ / "e.json").string() + " --out " + out());
    ASSERT_EQ(run.code, 0) << run.output;
    record_ = read_report(out()).records[1];
  }
  std::string out() const { return (folder_ / "out").string(); }

  TemporaryFolder folder_;
  Record record_;
};

TEST_F(Rerun, MeasuresExactlyThatRecordAgain) {
  const auto again = run_transpool("rerun " + out() + " " + record_.id.substr(0, 8) + " --format json --out " +
                                   (folder_ / "again").string());
  ASSERT_EQ(again.code, 0) << again.output;
  const auto json = as_json(again);
  ASSERT_EQ(json["cells"].size(), 1U);
  EXPECT_EQ(json["cells"][0]["new"]["id"], record_.id);
  EXPECT_FALSE(json["cells"][0]["figures"].empty());
  for (const auto& figure : json["cells"][0]["figures"]) EXPECT_EQ(figure["verdict"], "SAME") << figure;
  const auto report = read_report(folder_ / "again");
  ASSERT_EQ(report.records.size(), 1U);
  EXPECT_EQ(report.records[0].id, record_.id);
  EXPECT_EQ(report.records[0].seed, 3);
  EXPECT_EQ(report.records[0].configuration, record_.configuration);
}

TEST_F(Rerun, SaysWhatIsWrongAndWritesNothing) {
  const auto unknown = run_transpool("rerun " + out() + " zzzz --out " + (folder_ / "again").string());
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.output, HasSubstr("no record's id begins with"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "again"));
  EXPECT_EQ(run_transpool("rerun " + out() + " " + record_.id + " --out " + out()).code, 2) << "its own report";
  EXPECT_EQ(run_transpool("rerun " + out()).code, 2);
}

TEST_F(Rerun, ComparesWithItselfAndFindsARegression) {
  EXPECT_EQ(run_transpool("compare " + out() + " " + out()).code, 0);
  auto report = read_report(out());
  for (auto& summary : report.records[0].summaries)
    if (summary.name == "flops_model") summary.value /= 2;
  for (auto& summary : report.records[1].summaries)
    if (summary.name == "flops_model") summary.value /= 2;
  write_report(folder_ / "base.json", report);
  const auto compared = run_transpool("compare " + (folder_ / "base.json").string() + " " + out() + " --format csv");
  EXPECT_EQ(compared.code, 1) << compared.output;
  EXPECT_THAT(compared.output, HasSubstr("SLOW"));
  EXPECT_EQ(run_transpool("compare " + out() + " " + (folder_ / "none").string()).code, 2);
}

}  // namespace
}  // namespace transpool
