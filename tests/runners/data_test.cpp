#include "runners/data/batch.h"
#include "runners/data/dataset.h"
#include "runners/data/tokenizer.h"
#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <boost/iostreams/device/file_descriptor.hpp>
#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/lzma.hpp>
#include <boost/iostreams/filtering_stream.hpp>

#include <set>
#include <sstream>

namespace transpool {
namespace {

using testing::HasSubstr;

Corpus load(const Json& value, std::uint64_t seed = 0) {
  const auto [dataset, options] = select_dataset(value, Where("x.json", "/data"));
  return dataset->load(options, seed, Where("x.json", "/data"));
}

std::string error_of(const Json& value) {
  try {
    load(value);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

const Json small_task = {
    {"name", "planted_salience"}, {"length", 40}, {"planted", 5}, {"train_documents", 50}, {"test_documents", 5}};

TEST(PlantedSalience, TheTargetIsThePlantedWordsInTheAskedOrder) {
  auto task = small_task;
  for (const bool alphabetical : {true, false}) {
    task["order"] = alphabetical ? "alphabetical" : "source";
    for (const auto& document : load(task).train.documents) {
      const auto source = words(document.source);
      ASSERT_EQ(source.size(), 40u);
      std::vector<std::string> planted;
      for (const auto place : document.salient) planted.push_back(source[static_cast<std::size_t>(place)]);
      if (alphabetical) std::sort(planted.begin(), planted.end());
      EXPECT_EQ(words(document.target), planted);
    }
  }
}

TEST(PlantedSalience, AWordIsSalientEverywhereOrNowhere) {
  std::set<std::string> salient, filler;
  for (const auto& document : load(small_task).train.documents) {
    const auto source = words(document.source);
    const std::set<std::int32_t> places(document.salient.begin(), document.salient.end());
    EXPECT_EQ(places.size(), 5u);
    for (std::int32_t i = 0; i < 40; ++i)
      (places.contains(i) ? salient : filler).insert(source[static_cast<std::size_t>(i)]);
  }
  for (const auto& word : salient) EXPECT_FALSE(filler.contains(word)) << word;
  EXPECT_LE(salient.size(), 32u);
  EXPECT_LE(filler.size(), 92u);
}

TEST(PlantedSalience, TheSeedDecidesEverything) {
  EXPECT_EQ(load(small_task, 3).test.documents[2].source, load(small_task, 3).test.documents[2].source);
  EXPECT_NE(load(small_task, 3).test.documents[2].source, load(small_task, 4).test.documents[2].source);
}

TEST(PlantedSalience, MorePlantedWordsThanThereAreIsRefused) {
  auto task = small_task;
  task["planted"] = 41;
  EXPECT_THAT(error_of(task), HasSubstr("x.json: /data/planted: 41 is out of range"));
}

class PubmedTest : public testing::Test {
 protected:
  static std::string article(int number) {
    return Json{{"article_id", "a" + std::to_string(number)},
                {"article_text", {"first sentence .", "number " + std::to_string(number)}},
                {"abstract_text", {"<S> short . </S>", "<S> text </S>"}},
                {"labels", nullptr}}
               .dump() +
           "\n";
  }
  template <class Filter>
  void write(const std::string& name, const std::string& text, const Filter& filter) {
    boost::iostreams::filtering_ostream stream;
    stream.push(filter);
    stream.push(boost::iostreams::file_descriptor_sink((folder_ / name).string()));
    stream << text;
  }
  TemporaryFolder folder_;
};

TEST_F(PubmedTest, ReadsPlainAndCompressedSplitsOfAFolder) {
  std::filesystem::create_directories(folder_ / "d");
  std::ofstream(folder_ / "d/train.jsonl") << article(1) << article(2) << R"({"article_text": [""], "abstract_text": ["x"]})"
                                           << "\n";
  write("d/val.jsonl.gz", article(3), boost::iostreams::gzip_compressor());
  write("d/test.jsonl.xz", article(4) + article(5), boost::iostreams::lzma_compressor());
  const auto corpus = load({{"name", "pubmed"}, {"path", (folder_ / "d").string()}});
  EXPECT_EQ(corpus.train.documents.size(), 2u);
  EXPECT_EQ(corpus.train.counts["skipped_empty_article"], 1);
  EXPECT_EQ(corpus.train.documents[0].target, "short .\ntext");
  EXPECT_EQ(corpus.validation.documents.size(), 1u);
  EXPECT_EQ(corpus.test.documents[1].source, "first sentence .\nnumber 5");
}

TEST_F(PubmedTest, DealsOneFileOutBySeed) {
  std::ofstream file(folder_ / "all.jsonl");
  for (int i = 0; i < 10; ++i) file << article(i);
  file.close();
  const auto corpus = load({{"name", "pubmed"},
                            {"path", (folder_ / "all.jsonl").string()},
                            {"train_documents", 6},
                            {"validation_documents", 2},
                            {"test_documents", 2}},
                           1);
  std::set<std::string> ids;
  for (const auto* split : {&corpus.train, &corpus.validation, &corpus.test})
    for (const auto& document : split->documents) ids.insert(document.id);
  EXPECT_EQ(ids.size(), 10u);
  EXPECT_EQ(corpus.test.documents.size(), 2u);
}

TEST_F(PubmedTest, DamagedFilesAreNamedWithTheirLine) {
  const auto path = folder_ / "bad.jsonl";
  const Json data = {{"name", "pubmed"}, {"path", path.string()}};
  std::ofstream(path) << article(1) << "{\"article_id\": \n";
  EXPECT_THAT(error_of(data), HasSubstr("bad.jsonl:2: is not JSON"));
  std::ofstream(path) << R"({"article_text": "one text", "abstract_text": []})"
                      << "\n";
  EXPECT_THAT(error_of(data), HasSubstr("bad.jsonl:1: /article_text"));
  write("cut.jsonl.gz", article(1) + article(2) + article(3), boost::iostreams::gzip_compressor());
  std::filesystem::resize_file(folder_ / "cut.jsonl.gz", 60);
  EXPECT_THAT(error_of({{"name", "pubmed"}, {"path", (folder_ / "cut.jsonl.gz").string()}}), HasSubstr("cut.jsonl.gz:"));
}

TEST(Tokenizers, RoundTripsKeepWordsAndLineEndsAndSurviveSaving) {
  Split training;
  for (int i = 0; i < 200; ++i)
    training.documents.push_back(
        {"", "a patient with some disease " + std::to_string(i) + "\nwas treated with a drug .", "the result"});
  for (const auto& [name, value] :
       std::map<std::string, Json>{{"word_vocabulary", "word_vocabulary"},
                                   {"sentencepiece", {{"name", "sentencepiece"}, {"vocabulary_size", 60}}}}) {
    const auto [entry, options] = select_tokenizer(value, {});
    const auto tokenizer = entry->build(options, training, 1, {});
    const std::string text = "a patient with some disease 7\nwas treated";
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text) << name;
    const TemporaryFolder folder;
    tokenizer->save(folder / "t");
    EXPECT_EQ(load_tokenizer(folder / "t")->encode(text), tokenizer->encode(text)) << name;
    EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{100000}), std::out_of_range) << name;
  }
}

TEST(Batcher, GivesEachExampleOncePerEpochAndResumes) {
  Batcher batcher(std::vector<std::int64_t>{5, 1, 4, 2, 3, 9, 8}, 3, 11, 2);
  std::multiset<std::int64_t> seen;
  for (int i = 0; i < 7; ++i)
    for (const auto index : batcher.next()) seen.insert(index);
  for (std::int64_t i = 0; i < 7; ++i) EXPECT_EQ(seen.count(i), 3u) << i;
  Batcher other(std::vector<std::int64_t>{5, 1, 4, 2, 3, 9, 8}, 3, 11, 2);
  other.restore(batcher.state());
  EXPECT_EQ(other.next(), batcher.next());
}

TEST(Encoding, CutsAndCountsAndKeepsTheEos) {
  Split training;
  training.documents.push_back({"", "a b c d e", "x y z"});
  const auto [entry, options] = select_tokenizer("word_vocabulary", {});
  const auto tokenizer = entry->build(options, training, 1, {});
  const auto encoded = encode_split(training, *tokenizer, 3, 2);
  EXPECT_EQ(encoded.examples[0].source.size(), 3u);
  EXPECT_EQ(encoded.examples[0].target.back(), Tokenizer::eos);
  EXPECT_EQ(encoded.counts["source"]["tokens_cut"], 2);
  EXPECT_EQ(encoded.counts["target"]["documents_cut"], 1);
  const auto batch = pad_batch(encoded.examples, std::vector<std::int64_t>{0}, 5);
  EXPECT_EQ(batch.source, (std::vector<std::int64_t>{encoded.examples[0].source[0], encoded.examples[0].source[1],
                                                     encoded.examples[0].source[2], 0, 0}));
  EXPECT_EQ(batch.target_in[0], Tokenizer::bos);
}

}  // namespace
}  // namespace transpool
