#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "operators/error.h"
#include "runners/rouge/rouge.h"

namespace transpool {
namespace {

namespace fs = std::filesystem;

const std::string good_line = R"({"id": 7, "reference": "the cat sat", "candidate": "the cats sat"})";

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Runs `transpool rouge` in a folder of its own.
class RougeCommand : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("transpool_rouge_test_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& text) {
    std::ofstream(folder_ / "pairs.jsonl", std::ios::binary) << text;
    return folder_ / "pairs.jsonl";
  }

  /// Returns the exit code; what was printed is in out_ and error_.
  int run(const std::string& arguments) {
    const auto call =
        "cd '" + folder_.string() + "' && '" TRANSPOOL_PROGRAM "' rouge " + arguments + " >out.txt 2>error.txt";
    const int status = std::system(call.c_str());
    out_ = read(folder_ / "out.txt");
    error_ = read(folder_ / "error.txt");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  /// Expects exit code 2, nothing written, and a message that holds both parts.
  void expect_refusal(const std::string& arguments, const std::string& part, const std::string& other_part = "") {
    EXPECT_EQ(run(arguments), 2);
    EXPECT_EQ(out_, "");
    EXPECT_NE(error_.find(part), std::string::npos) << error_;
    EXPECT_NE(error_.find(other_part), std::string::npos) << error_;
    EXPECT_FALSE(fs::exists(folder_ / "scores.jsonl"));
  }

  fs::path folder_;
  std::string out_;
  std::string error_;
};

TEST_F(RougeCommand, PrintsMeansIntervalsAndProtocolAsJson) {
  write(good_line + "\n" + R"({"reference": "a", "candidate": "b"})" + "\n");
  ASSERT_EQ(run("pairs.jsonl --stem --format json"), 0) << error_;
  const auto printed = Json::parse(out_);
  EXPECT_EQ(printed.at("pairs"), 2);
  EXPECT_DOUBLE_EQ(printed.at("rouge1").at("fmeasure").get<double>(), 0.5);
  EXPECT_EQ(printed.at("rouge1").at("interval").dump(), "[0.0,1.0]");
  EXPECT_NE(printed.at("protocol").at("stemming"), "none");
}

TEST_F(RougeCommand, PrintsATableAndTheProtocolAsText) {
  write(good_line);
  ASSERT_EQ(run("pairs.jsonl"), 0) << error_;
  for (const auto* part : {"1 pair\n", "rougeLsum", "0.6667", "stemming", "rouge-score 0.1.2", "seed"})
    EXPECT_NE(out_.find(part), std::string::npos) << part;
}

TEST_F(RougeCommand, WritesTheScoresOfEachPairInTheirOrder) {
  write(good_line + "\r\n" + R"({"candidate": "\u212A b", "reference": "k"})");
  ASSERT_EQ(run("pairs.jsonl --per-pair scores.jsonl"), 0) << error_;
  EXPECT_EQ(read(folder_ / "scores.jsonl"), to_json(rouge("the cat sat", "the cats sat", false)).dump() + "\n" +
                                                to_json(rouge("k", "k b", false)).dump() + "\n");
}

TEST_F(RougeCommand, NamesFileLineAndReasonOfABadLine) {
  const auto refuse = [this](const std::string& bad, const std::string& reason) {
    write(good_line + "\n" + bad + "\n" + good_line + "\n");
    expect_refusal("pairs.jsonl --per-pair scores.jsonl", "pairs.jsonl: line 2: ", reason);
  };
  refuse("{\"reference\": ", "is not JSON");
  refuse("{\"reference\": \"\xFF\", \"candidate\": \"\"}", "is not JSON");
  refuse("", "is blank");
  refuse("[1]", "is of type array");
  refuse(R"({"reference": "a"})", "has no \"candidate\"");
  refuse(R"({"refrence": "a", "candidate": "b"})", "but \"refrence\"");
  refuse(R"({"reference": "a", "candidate": ["b"]})", "/candidate: is of type array, allowed: text");
  refuse(R"({"reference": null, "candidate": "b"})", "/reference: is of type null");
}

TEST_F(RougeCommand, RefusesAFileWithoutPairs) {
  write("");
  expect_refusal("pairs.jsonl", "pairs.jsonl: is empty", "\"reference\"");
  expect_refusal("missing.jsonl", "missing.jsonl: there is no such file");
  expect_refusal(".", "is a folder");
  expect_refusal("", "needs a file of pairs");
}

TEST_F(RougeCommand, RefusesAnOutputThatCannotBeOrMustNotBeReplaced) {
  write(good_line);
  expect_refusal("pairs.jsonl --per-pair nowhere/scores.jsonl", "--per-pair nowhere/scores.jsonl: there is no folder");
  expect_refusal("pairs.jsonl --per-pair .", "not a regular file");
  expect_refusal("pairs.jsonl --per-pair pairs.jsonl", "is the file of pairs itself");
  EXPECT_EQ(read(folder_ / "pairs.jsonl"), good_line);
}

TEST_F(RougeCommand, NamesTheFormatsItKnows) {
  write(good_line);
  expect_refusal("pairs.jsonl --format jsn", "did you mean \"json\"?", "text");
  expect_refusal("pairs.jsonl --stemm", "--stem");
}

}  // namespace
}  // namespace transpool
