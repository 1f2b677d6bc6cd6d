#include "runners/data/tokenizer.h"
#include "tests/runners/run_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

namespace transpool {
namespace {

using testing::HasSubstr;

Split split_of(const std::vector<std::string>& sources) {
  Split split;
  for (const auto& source : sources) split.documents.push_back({"", source, ""});
  return split;
}

/// Made-up words, `count` to the document.
Split babble(int documents, int count) {
  std::vector<std::string> sources;
  for (int i = 0; i < documents; ++i) {
    std::string text;
    for (int j = 0; j < count; ++j) {
      const int word = (i * 31 + j * 7) % 97;
      text += std::string("bdklm").substr(static_cast<std::size_t>(word % 5), 1) + (word % 3 == 0 ? "ona" : "uri") +
              (word % 2 == 0 ? "t " : "ven ");
    }
    sources.push_back(text);
  }
  return split_of(sources);
}

std::unique_ptr<Tokenizer> build(const Json& value, const Split& training) {
  const auto [entry, options] = select_tokenizer(value, Where("x.json", "/tokenizer"));
  return entry->build(options, training, 0, Where("x.json", "/tokenizer"));
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(WordVocabulary, FrequentWordsComeFirstThenAlphabetically) {
  const auto tokenizer = build("word_vocabulary", split_of({"pear fig fig", "apple fig pear date"}));
  EXPECT_EQ(tokenizer->size(), 8);
  EXPECT_EQ(tokenizer->encode("fig pear apple date"), (std::vector<std::int32_t>{4, 5, 6, 7}));
}

TEST(WordVocabulary, RareWordsBeyondTheSizeAreUnknown) {
  const auto tokenizer = build({{"name", "word_vocabulary"}, {"vocabulary_size", 5}}, split_of({"fig fig pear"}));
  EXPECT_EQ(tokenizer->encode("fig  pear"), (std::vector<std::int32_t>{4, Tokenizer::unknown}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("fig pear")), "fig " + std::string(Tokenizer::unknown_text));
}

TEST(WordVocabulary, DecodingLeavesOutPadBosAndEos) {
  const auto tokenizer = build("word_vocabulary", split_of({"fig"}));
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{Tokenizer::bos, 4, Tokenizer::eos, Tokenizer::pad}), "fig");
}

TEST(SentencePiece, TrainingTwiceGivesTheSamePiecesThoughItSamples) {
  const Json value = {{"name", "sentencepiece"}, {"vocabulary_size", 40}, {"sentences", 101}};
  const auto training = babble(400, 8);
  const auto& text = training.documents[3].source;
  EXPECT_EQ(build(value, training)->encode(text), build(value, training)->encode(text));
}

TEST(SentencePiece, LearnsFromLinesThatAreLongerThanTheTrainerTakes) {
  const auto training = babble(3, 2000);
  ASSERT_GT(training.documents[0].source.size(), 8400u);
  for (const auto* type : {"unigram", "bpe"}) {
    const auto tokenizer = build({{"name", "sentencepiece"}, {"vocabulary_size", 40}, {"model_type", type}}, training);
    const auto ids = tokenizer->encode(training.documents[0].source);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), Tokenizer::unknown), 0) << type;
    EXPECT_EQ(tokenizer->decode(ids) + " ", training.documents[0].source) << type;
  }
}

TEST(SentencePiece, RefusesTrainingThatCannotWork) {
  EXPECT_THAT(error_of([] {
                build("sentencepiece", split_of({"", " \n "}));
              }),
              HasSubstr("x.json: /tokenizer: the training"));
  const auto tight = [] { build({{"name", "sentencepiece"}, {"vocabulary_size", 16}}, babble(50, 8)); };
  EXPECT_THAT(error_of(tight), HasSubstr("x.json: /tokenizer/vocabulary_size: 16 is too few"));
}

/// A model that was made elsewhere, in the golden folder.
Json model_of_others(const std::string& file) {
  return {{"name", "sentencepiece"}, {"model", std::string(TEST_FOLDER) + "/runners/golden/data/" + file}};
}

TEST(SentencePiece, AModelOfOthersWithoutALineEndPieceReadsLineEndsAsSpaces) {
  const auto tokenizer = build(model_of_others("no_line_end.model"), {});
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("buriven\nkonat")), "buriven konat");
  EXPECT_THAT(tokenizer->decode(std::vector<std::int32_t>{Tokenizer::unknown}),
              HasSubstr(std::string(Tokenizer::unknown_text)));
}

TEST(SentencePiece, RefusesModelsThatItCannotUse) {
  const auto with = [](const std::string& file) { return error_of([&] { build(model_of_others(file), {}); }); };
  EXPECT_THAT(with("other_special_ids.model"), HasSubstr("x.json: /tokenizer/model: has other special ids"));
  EXPECT_THAT(with("none.model"), HasSubstr("none.model cannot be read"));
  EXPECT_THAT(with("articles.jsonl"), HasSubstr("x.json: /tokenizer/model: is no SentencePiece model"));
}

TEST(SavedTokenizer, DamageIsAUsageErrorWithItsPlace) {
  const TemporaryFolder folder;
  const auto with = [&](const std::string& text) {
    std::ofstream(folder / "tokenizer.json") << text;
    return error_of([&] { load_tokenizer(folder / "."); });
  };
  EXPECT_THAT(error_of([&] { load_tokenizer(folder / "none"); }), HasSubstr("tokenizer.json: cannot be read"));
  EXPECT_THAT(with("{"), HasSubstr("is not a tokenizer's description"));
  EXPECT_THAT(with(R"({"name": "word_vocabulry"})"), HasSubstr("did you mean \"word_vocabulary\"?"));
  EXPECT_THAT(with(R"({"name": "word_vocabulary", "words": ["a", 5]})"),
              HasSubstr("/words: is missing, or no list of words"));
  EXPECT_THAT(with(R"({"name": "sentencepiece", "model": "gone.model"})"), HasSubstr("gone.model cannot be read"));
}

}  // namespace
}  // namespace transpool
