#include "runners/sweep/experiment.h"

#include "runners/sweep/expression.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>
#include <filesystem>
#include <fstream>

namespace transpool {
namespace {

using testing::HasSubstr;

class ExperimentTest : public testing::Test {
 protected:
  void SetUp() override {
    file_ = std::filesystem::temp_directory_path() / ("experiment_test_" + std::to_string(getpid()) + ".json");
    json_ = Json::parse(R"({"name": "t", "level": "operator", "measure": ["time"],
      "fixed": {"batch": 2, "width": 8}, "axes": {"pooling": ["hard_topk", "successive_halving"], "source_length": [16, 32], "pooled_length": [4, 8]},
      "baseline": {"pooling": "hard_topk"}, "seeds": [0, 1]})");
  }
  void TearDown() override { std::filesystem::remove(file_); }

  Experiment read(const std::vector<std::string>& overrides = {}) {
    std::ofstream(file_) << json_.dump();
    return read_experiment(file_, overrides, "cpu");
  }

  std::string error(const std::vector<std::string>& overrides = {}) {
    try {
      read(overrides);
    } catch (const UsageError& usage) {
      return usage.what();
    }
    return "accepted";
  }

  std::filesystem::path file_;
  Json json_;
};

TEST_F(ExperimentTest, AxesMultiplyAndSeedsRepeat) { EXPECT_EQ(read().cells.size(), 2u * 2u * 2u * 2u); }

TEST_F(ExperimentTest, ZippedAxesMoveTogether) {
  json_["zip"] = Json::array({Json::array({"source_length", "pooled_length"})});
  const auto experiment = read();
  EXPECT_EQ(experiment.cells.size(), 2u * 2u * 2u);
  for (const auto& cell : experiment.cells)
    EXPECT_EQ(cell.values.integer("source_length"), 4 * cell.values.integer("pooled_length"));
}

TEST_F(ExperimentTest, WhereLeavesCellsOut) {
  json_["where"] = {"pooled_length * 4 <= source_length and pooling != 'hard_topk'"};
  const auto experiment = read();
  EXPECT_EQ(experiment.cells.size(), 3u * 2u);
  EXPECT_EQ(experiment.left_out.size(), 5u);
}

TEST_F(ExperimentTest, BaselineIsTheCellOfTheSameRow) {
  for (const auto& cell : read().cells) EXPECT_EQ(cell.baseline.size(), cell.axes["pooling"] == "hard_topk" ? 0u : 16u);
}

TEST_F(ExperimentTest, IdentityDoesNotDependOnTheOrderOfKeysOrOnSpelledOutDefaults) {
  const auto before = read().cells[2].id;
  json_["fixed"] = Json::parse(R"({"width": 8, "batch": 2, "scores": "uniform"})");
  EXPECT_EQ(read().cells[2].id, before);
  json_["fixed"]["scores"] = "gaussian";
  EXPECT_NE(read().cells[2].id, before);
}

TEST_F(ExperimentTest, SetTakesListsRangesAndValues) {
  EXPECT_EQ(read({"axes.source_length=16:64*2", "fixed.batch=3", "seeds=[0]"}).cells.size(), 2u * 3u * 2u);
  EXPECT_EQ(
      read({"axes.pooling=successive_halving,{\"name\":\"hard_topk\",\"gradient\":\"none\"}", "baseline={}"}).cells.size(),
      16u);
}

TEST_F(ExperimentTest, ErrorsNameFilePathValueAndNearest) {
  json_["axes"]["pooling"][1] = "sucessive_halving";
  EXPECT_THAT(
      error(),
      HasSubstr("/axes/pooling/1: unknown pooling operator \"sucessive_halving\"; did you mean \"successive_halving\"?"));
}

TEST_F(ExperimentTest, UnknownKeysAxesAndOptionsAreRefused) {
  EXPECT_THAT(error({"fixed.bach=2"}), HasSubstr("/fixed/bach: unknown setting \"bach\"; did you mean \"batch\"?"));
  EXPECT_THAT(error({"axis=2"}), HasSubstr("unknown key of an experiment \"axis\"; did you mean \"axes\"?"));
  EXPECT_THAT(error({"axes.pooling={\"name\":\"hard_topk\",\"gradiant\":\"none\"}"}),
              HasSubstr("did you mean \"gradient\"?"));
  EXPECT_THAT(error({"fixed.encoder=vanilla"}), HasSubstr("not read at level operator"));
  EXPECT_THAT(error({"level=operater"}), HasSubstr("did you mean \"operator\"?"));
}

TEST_F(ExperimentTest, WrongTypesAndRangesAreRefused) {
  EXPECT_THAT(error({"fixed.batch=two"}), HasSubstr("/fixed/batch: \"two\" is not allowed; allowed: integer"));
  EXPECT_THAT(error({"fixed.batch=-1"}), HasSubstr("-1 is out of range"));
  EXPECT_THAT(error({"axes.pooled_length=64"}),
              HasSubstr("/axes/pooled_length/0: 64 is out of range; allowed: 1 to source_length = 16 (cell {"));
  EXPECT_THAT(error({"axes.pooled_length=4,64"}), HasSubstr("/axes/pooled_length/1: 64 is out of range"));
  EXPECT_THAT(error({"seeds=[]"}), HasSubstr("/seeds"));
  EXPECT_THAT(error({"measure=[\"tyme\"]"}), HasSubstr("did you mean \"time\"?"));
}

TEST_F(ExperimentTest, AWhereThatRemovesEveryCellIsRefused) {
  json_["where"] = {"source_length > 1000"};
  EXPECT_THAT(error(), HasSubstr("removes every cell"));
  json_["where"] = {"source_length >"};
  EXPECT_THAT(error(), HasSubstr("is not an expression"));
  json_["where"] = {"sourcelength > 1"};
  EXPECT_THAT(error(), HasSubstr("did you mean \"source_length\"?"));
}

TEST_F(ExperimentTest, AFileThatIsMissingOrNotJsonIsRefused) {
  EXPECT_THROW(read_experiment("/nowhere/x.json", {}, "cpu"), UsageError);
  std::ofstream(file_) << "{\"name\": ";
  EXPECT_THROW(read_experiment(file_, {}, "cpu"), UsageError);
}

TEST_F(ExperimentTest, CellsSurviveJson) {
  for (const auto& cell : read().cells) EXPECT_EQ(to_json(cell_from_json(to_json(cell))), to_json(cell));
}

}  // namespace
}  // namespace transpool
