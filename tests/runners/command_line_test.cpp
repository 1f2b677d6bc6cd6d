#include "runners/report/report.h"
#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transpool {
namespace {

using testing::HasSubstr;

std::string experiment(const std::string& name) { return std::string(SOURCE_FOLDER) + "/experiments/" + name + ".json"; }

TEST(CommandLine, UnknownCommandsAndOptionsNameTheNearest) {
  const auto command = run_transpool("lst");
  EXPECT_EQ(command.code, 2);
  EXPECT_THAT(command.output, HasSubstr("did you mean \"list\"?"));
  const auto option = run_transpool("run " + experiment("quickstart") + " --resme");
  EXPECT_EQ(option.code, 2);
  EXPECT_THAT(option.output, HasSubstr("--resume"));
}

TEST(CommandLine, EveryCommittedExperimentHasAPlan) {
  const TemporaryFolder folder;
  const auto articles = folder / "articles.jsonl";
  for (int i = 0; i < 3; ++i)
    std::ofstream(articles, std::ios::app) << R"({"article_text": ["one"], "abstract_text": ["<S> two </S>"]})"
                                           << "\n";
  for (const auto& entry : std::filesystem::directory_iterator(std::string(SOURCE_FOLDER) + "/experiments")) {
    if (entry.path().extension() != ".json") continue;
    const bool reads_files = entry.path().stem() == "sumpubmed-small";
    const auto plan = run_transpool("run --dry-run " + entry.path().string() +
                                    (reads_files ? " --set data.path=" + articles.string() : ""));
    EXPECT_EQ(plan.code, 0) << entry.path() << plan.output;
    EXPECT_THAT(plan.output, HasSubstr("GFLOP")) << entry.path();
  }
}

TEST(CommandLine, ListShowsEveryKindWithItsOptions) {
  const auto list = run_transpool("list --json");
  ASSERT_EQ(list.code, 0) << list.output;
  const auto json = Json::parse(list.output);
  for (const auto* kind : {"attention", "pooling", "scorer", "encoder", "experiment", "metric"})
    EXPECT_FALSE(json[kind].empty()) << kind;
  EXPECT_THAT(run_transpool("list pooling").output, HasSubstr("keep_order"));
  EXPECT_EQ(run_transpool("list poling").code, 2);
}

TEST(CommandLine, DoctorMeasuresTheCeilingsWhereItIsAskedTo) {
  EXPECT_FALSE(Json::parse(run_transpool("doctor --json").output)["environment"].contains("ceilings"));
  const auto doctor = run_transpool("doctor --json --ceilings");
  ASSERT_EQ(doctor.code, 0) << doctor.output;
  const auto ceilings = Json::parse(doctor.output)["environment"]["ceilings"];
  EXPECT_GT(ceilings["copy_bytes_per_second"], 1e8);
  for (const auto* dtype : {"float32", "bfloat16"}) EXPECT_GT(ceilings["product_flops_per_second"][dtype], 1e7) << dtype;
}

TEST(CommandLine, BadExperimentsEndWithTwoAndWriteNothing) {
  const TemporaryFolder folder;
  const auto out = folder / "out";
  for (const auto* bad : {"--set axes.encoder=vanila", "--set fixed.heads=3", "--set fixed.chunk=0", "--set fixed.batch=-4",
                          "--set fixed.pooled_length=999", "--set data.legnth=3", "--set nonsense=3", "--device gpu"}) {
    const auto result = run_transpool("run " + experiment("quickstart") + " --out " + out.string() + " " + bad);
    EXPECT_EQ(result.code, 2) << bad << result.output;
    EXPECT_FALSE(std::filesystem::exists(out)) << bad;
  }
}

TEST(CommandLine, ADamagedDataFileIsNamedWithItsLine) {
  const TemporaryFolder folder;
  const auto data = folder / "articles.jsonl";
  std::ofstream(data) << R"({"article_id": "a", "article_text": ["one"], "abstract_text": ["<S> two </S>"]})"
                      << "\n{\"article_text\": \n";
  const auto train = "train " + experiment("sumpubmed-small") + " --set axes.encoder=blockwise --out " +
                     (folder / "model").string() + " --set data.path=";
  const auto damaged = run_transpool(train + data.string());
  EXPECT_EQ(damaged.code, 2) << damaged.output;
  EXPECT_THAT(damaged.output, HasSubstr("articles.jsonl:2: is not JSON"));
  std::ofstream(data) << R"({"article_id": "a", "abstract_text": ["two"]})"
                      << "\n";
  EXPECT_THAT(run_transpool(train + data.string()).output, HasSubstr("has no \"article_text\""));
  const auto missing = run_transpool(train + (folder / "article.jsonl").string());
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.output, HasSubstr("articles.jsonl\"?"));
}

TEST(CommandLine, TrainResumeGenerateAndScoreWorkTogether) {
  const TemporaryFolder folder;
  const auto model = (folder / "model").string();
  const auto small =
      " --set axes.encoder=pyramidion --set baseline={} --set data.train_documents=64 --set data.test_documents=4 --set "
      "data.length=32 --set data.planted=2 "
      "--set fixed.source_length=32 --set fixed.pooled_length=8 --set fixed.chunk=8 --set fixed.batch=4";
  const auto first = run_transpool("train " + experiment("quickstart") + small + " --set training.steps=6 --out " + model);
  ASSERT_EQ(first.code, 0) << first.output;
  EXPECT_EQ(run_transpool("train " + experiment("quickstart") + small + " --set training.steps=6 --out " + model).code, 2);
  EXPECT_EQ(
      run_transpool("train " + experiment("quickstart") + small + " --set training.steps=6 --resume --out " + model).code,
      0);
  std::ofstream(folder / "documents.jsonl") << R"({"source": "some words of a text", "target": "some words"})"
                                            << "\n";
  const auto generated =
      run_transpool("generate --checkpoint " + model + " --data " + (folder / "documents.jsonl").string() + " --out " +
                    (folder / "pairs.jsonl").string());
  ASSERT_EQ(generated.code, 0) << generated.output;
  EXPECT_EQ(run_transpool("rouge " + (folder / "pairs.jsonl").string()).code, 0);
}

TEST(CommandLine, AFailingCellCostsItselfAlone) {
  const TemporaryFolder folder;
  const auto out = folder / "out";
  std::ofstream(folder / "memory.json")
      << R"({"name": "m", "level": "operator", "measure": ["flops"], "fixed": {"batch": 2, "pooled_length": 4},
    "axes": {"source_length": [16, 4194304], "width": [8, 65536]}, "zip": [["source_length", "width"]]})";
  const auto result = run_transpool("run " + (folder / "memory.json").string() + " --out " + out.string());
  EXPECT_EQ(result.code, 1) << result.output;
  const auto report = read_report(out);
  ASSERT_EQ(report.records.size(), 2u);
  EXPECT_EQ(report.records[0].status, Status::ok) << report.records[0].reason;
  EXPECT_EQ(report.records[1].status, Status::oom) << report.records[1].reason;
  EXPECT_FALSE(report.records[1].reason.empty());
}

}  // namespace
}  // namespace transpool
