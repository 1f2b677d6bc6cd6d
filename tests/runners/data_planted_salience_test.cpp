#include "runners/data/dataset.h"
#include "runners/rouge/porter_stemmer.h"

#include <gtest/gtest.h>

#include <set>
#include <sstream>

namespace transpool {
namespace {

Corpus load(std::uint64_t seed, std::int64_t documents) {
  const auto [dataset, options] =
      select_dataset({{"name", "planted_salience"}, {"train_documents", documents}}, Where("x.json", "/data"));
  return dataset->load(options, seed, Where("x.json", "/data"));
}

std::set<std::string> vocabulary(const Split& split) {
  std::set<std::string> words;
  for (const auto& document : split.documents) {
    std::istringstream text(document.source);
    for (std::string word; text >> word;) words.insert(word);
  }
  return words;
}

/// FNV-1a of all ids and texts.
std::uint64_t hash(const Split& split) {
  std::uint64_t hash = 14695981039346656037ULL;
  for (const auto& document : split.documents)
    for (const char c : document.id + "|" + document.source + "|" + document.target + "\n") {
      hash ^= static_cast<unsigned char>(c);
      hash *= 1099511628211ULL;
    }
  return hash;
}

TEST(PlantedSalienceCorpus, IsTheSameOnEveryMachine) {
  const auto corpus = load(0, 4096);
  EXPECT_EQ(hash(corpus.train), 39705425972521782ULL);
  EXPECT_EQ(hash(corpus.validation), 8246841695787467768ULL);
  EXPECT_EQ(hash(corpus.test), 12261781145087472231ULL);
}

TEST(PlantedSalienceCorpus, NoSplitDependsOnTheSizeOfAnother) {
  const auto few = load(3, 10), many = load(3, 1000);
  EXPECT_EQ(hash(few.validation), hash(many.validation));
  EXPECT_EQ(hash(few.test), hash(many.test));
  auto first = many.train;
  first.documents.resize(10);
  EXPECT_EQ(hash(first), hash(few.train));
  EXPECT_NE(few.train.documents[0].source, few.validation.documents[0].source);
  EXPECT_NE(few.validation.documents[0].source, few.test.documents[0].source);
}

TEST(PlantedSalienceCorpus, WordsStayDifferentWhenStemmed) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    std::set<std::string> stems;
    const auto words = vocabulary(load(seed, 100).train);
    for (const auto& word : words) stems.insert(porter_stem(word));
    EXPECT_EQ(words.size(), 32u + 92u);
    EXPECT_EQ(stems.size(), words.size()) << "seed " << seed;
  }
}

TEST(PlantedSalienceCorpus, PlacesSpreadOverTheWholeDocument) {
  std::int64_t early = 0, all = 0;
  for (const auto& document : load(0, 1000).train.documents)
    for (const auto place : document.salient) {
      ++all;
      early += place < 64;
      EXPECT_LT(place, 256);
    }
  EXPECT_EQ(all, 8000);
  // A quarter of the places, give or take 5 standard deviations.
  EXPECT_NEAR(static_cast<double>(early), 2000, 200);
}

}  // namespace
}  // namespace transpool
