#include "runners/data/dataset.h"
#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace transpool {
namespace {

using testing::HasSubstr;
using testing::Not;

/// A folder whose three splits are the made-up articles of the golden file.
class PubmedFolder : public testing::Test {
 protected:
  PubmedFolder() {
    const std::filesystem::path golden = std::string(TEST_FOLDER) + "/runners/golden/data/articles.jsonl";
    for (const auto* name : {"train", "val", "test"})
      std::filesystem::copy_file(golden, folder_ / (std::string(name) + ".jsonl"));
  }

  Corpus load(Json options = Json::object()) const {
    Json value = {{"name", "pubmed"}, {"path", (folder_ / ".").string()}};
    value.update(options);
    const auto [dataset, checked] = select_dataset(value, Where("x.json", "/data"));
    return dataset->load(checked, 0, Where("x.json", "/data"));
  }

  std::string error_of(Json options = Json::object()) const {
    try {
      load(options);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "accepted";
  }

  void write(const std::string& name, const std::string& text) const { std::ofstream(folder_ / name) << text; }

  TemporaryFolder folder_;
};

TEST_F(PubmedFolder, CountsWhatWasReadKeptAndSkipped) {
  const auto counts = load().train.counts;
  EXPECT_EQ(counts["read"], 6) << "a blank line is no record";
  EXPECT_EQ(counts["kept"], 4);
  EXPECT_EQ(counts["skipped_empty_article"], 1);
  EXPECT_EQ(counts["skipped_empty_abstract"], 1);
  EXPECT_EQ(counts["abstract_in_body"], 1);
  EXPECT_EQ(counts["duplicate_id"], 1);
  EXPECT_EQ(counts["mean_source_words"], (16 + 13 + 9 + 6) / 4.0);
}

TEST_F(PubmedFolder, ALineIsASentenceWithoutItsMarks) {
  const auto documents = load().validation.documents;
  EXPECT_EQ(documents[0].source, "kites fly when the wind is strong .\nwe flew <dig> kites on a hill .");
  EXPECT_EQ(documents[0].target, "strong wind lifts kites .\nhills help .");
  EXPECT_EQ(documents[2].source, "kites again , with a line end inside .");
  EXPECT_EQ(documents[2].target, "plain , without marks .");
}

TEST_F(PubmedFolder, ARecordWithoutAnIdIsCalledByItsPlace) { EXPECT_EQ(load().test.documents[3].id, "test.jsonl:7"); }

TEST_F(PubmedFolder, ReadingStopsAtTheLimitAndNeverSeesWhatIsDamagedAfterIt) {
  write("train.jsonl", "{\"article_text\": [\"a\"], \"abstract_text\": [\"b\"]}\nno JSON\n");
  EXPECT_EQ(load({{"train_documents", 1}}).train.documents.size(), 1u);
  EXPECT_THAT(error_of({{"train_documents", 2}}), HasSubstr("train.jsonl:2: is not JSON"));
}

TEST_F(PubmedFolder, AMissingSplitIsNamedWithTheFilesThatWouldDo) {
  std::filesystem::remove(folder_ / "test.jsonl");
  EXPECT_THAT(error_of(), HasSubstr("holds no test split; allowed: one of test.jsonl, test.jsonl.xz, test.jsonl.gz"));
}

TEST_F(PubmedFolder, AMissingFileComesWithTheNearestNameButNoEndlessList) {
  const auto path = (folder_ / "trian.jsonl").string();
  EXPECT_THAT(error_of({{"path", path}}), HasSubstr("trian.jsonl: is not there; did you mean"));
  for (int i = 0; i < 50; ++i) write("other" + std::to_string(i), "");
  EXPECT_THAT(error_of({{"path", path}}), Not(HasSubstr("other7")));
  EXPECT_THAT(error_of({{"path", (folder_ / "none/train.jsonl").string()}}), HasSubstr("nor can its folder be read"));
}

TEST_F(PubmedFolder, WrongRecordsAreNamedWithLineAndPlace) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"abstract_text": ["b"]})", "train.jsonl:1: has no \"article_text\"; allowed: list of sentences"},
      {R"({"article_text": ["a"]})", "train.jsonl:1: has no \"abstract_text\"; allowed: list of sentences"},
      {R"({"article_text": ["a", 5], "abstract_text": ["b"]})", "train.jsonl:1: /article_text/1: 5 is not allowed"},
      {R"({"article_text": ["a"], "abstract_text": "b"})", "train.jsonl:1: /abstract_text: \"b\" is not allowed"},
      {R"({"article_id": [], "article_text": ["a"], "abstract_text": ["b"]})", "train.jsonl:1: /article_id: "},
      {R"([1, 2])", "train.jsonl:1: is not an object"},
      {"{\"article_text\": [\"\xff\"]}", "train.jsonl:1: is not JSON from byte 20 on"},
      {"\n\n", "train.jsonl: holds no document"},
  };
  for (const auto& [line, message] : cases) {
    write("train.jsonl", line + "\n");
    EXPECT_THAT(error_of(), HasSubstr(message));
  }
}

}  // namespace
}  // namespace transpool
