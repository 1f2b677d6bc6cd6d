#include "runners/data/dataset.h"
#include "runners/data/salient_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace transpool {
namespace {

TEST(SalientTokens, AreTheWordsOfTheTargetsWherePlanted) {
  const auto [dataset, options] = select_dataset(
      Json{{"name", "planted_salience"}, {"length", 40}, {"planted", 4}, {"train_documents", 200}, {"test_documents", 5}},
      {});
  const auto corpus = dataset->load(options, 1, {});
  const auto [kind, kind_options] = select_tokenizer("word_vocabulary", {});
  const auto tokenizer = kind->build(kind_options, corpus.train, 1, {});
  const auto salient = salient_tokens(corpus.train, *tokenizer);
  EXPECT_EQ(salient.size(), 32U);
  for (const auto& document : corpus.test.documents) {
    std::vector<std::int64_t> kept, target;
    for (const auto id : tokenizer->encode(document.source))
      if (std::binary_search(salient.begin(), salient.end(), id)) kept.push_back(id);
    for (const auto id : tokenizer->encode(document.target)) target.push_back(id);
    std::sort(kept.begin(), kept.end());
    std::sort(target.begin(), target.end());
    EXPECT_EQ(kept, target) << document.id;
  }
}

TEST(SalientTokens, AreNoneWhereTheDataSetDoesNotKnow) {
  Split split;
  split.documents.push_back({"a", "some words", "words"});
  const auto [kind, kind_options] = select_tokenizer("word_vocabulary", {});
  EXPECT_TRUE(salient_tokens(split, *kind->build(kind_options, split, 1, {})).empty());
}

}  // namespace
}  // namespace transpool
