#include "runners/rouge/rouge.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "runners/rouge/tokenize.h"

namespace transpool {
namespace {

using Tokens = std::vector<std::string>;

void expect_scores(const RougeScores& scores, const Json& golden, const std::string& pair) {
  std::size_t next = 0;
  for (const auto& kind : rouge_kinds) {
    const auto& score = scores.*kind.score;
    for (const double figure : {score.precision, score.recall, score.fmeasure})
      EXPECT_NEAR(figure, golden.at(next++).get<double>(), 1e-12) << kind.name << " of " << pair;
  }
}

TEST(Rouge, EqualsRougeScoreOnEveryGoldenPair) {
  std::ifstream file(TEST_FOLDER "/runners/golden/rouge/pairs.jsonl");
  ASSERT_TRUE(file);
  int pairs = 0;
  for (std::string line; std::getline(file, line); ++pairs) {
    const auto pair = Json::parse(line);
    const auto reference = pair.at("reference").get<std::string>();
    const auto candidate = pair.at("candidate").get<std::string>();
    expect_scores(rouge(reference, candidate, false), pair.at("plain"), line);
    expect_scores(rouge(reference, candidate, true), pair.at("stemmed"), line);
  }
  EXPECT_GT(pairs, 250);
}

TEST(Rouge, TakesTheReferenceFirst) {
  const auto score = rouge("a b c d", "a b", false).rouge1;
  EXPECT_DOUBLE_EQ(score.precision, 1);
  EXPECT_DOUBLE_EQ(score.recall, 0.5);
}

TEST(Rouge, IsZeroWhereATextHasNoTokens) {
  for (const auto& kind : rouge_kinds) {
    EXPECT_EQ((rouge("", "", false).*kind.score).fmeasure, 0);
    EXPECT_EQ((rouge("...", "word", true).*kind.score).fmeasure, 0);
  }
}

TEST(Rouge, SplitsSentencesAtNewlinesForRougeLsumAlone) {
  const auto scores = rouge("one two\nthree four", "three four\none two", false);
  EXPECT_DOUBLE_EQ(scores.rougeL.fmeasure, 0.5);
  EXPECT_DOUBLE_EQ(scores.rougeLsum.fmeasure, 1);
}

TEST(Rouge, CountsACandidateTokenOnceHoweverManyReferenceLinesHoldIt) {
  EXPECT_DOUBLE_EQ(rouge("the\nthe\nthe", "the", false).rougeLsum.recall, 1.0 / 3);
}

TEST(Rouge, ScoresDocumentsOfManyThousandWords) {
  std::string document;
  for (int i = 0; i < 20000; ++i) document += "word" + std::to_string(i * 7919 % 3001) + (i % 25 == 24 ? "\n" : " ");
  const auto scores = rouge(document, document, true);
  EXPECT_EQ(scores.rougeL.fmeasure, 1);
  EXPECT_EQ(scores.rougeLsum.fmeasure, 1);
}

TEST(RougeProtocol, SaysWhetherWordsWereStemmed) {
  EXPECT_EQ(rouge_protocol(false).at("stemming"), "none");
  EXPECT_NE(rouge_protocol(true).at("stemming"), "none");
  for (const auto* key : {"version", "tokens", "sentences", "aggregation"}) EXPECT_TRUE(rouge_protocol(true).contains(key));
}

TEST(RougeJson, ListsPrecisionRecallAndFOfEachScore) {
  EXPECT_EQ(to_json(rouge("a b", "a", false)).dump(),
            R"({"rouge1":[1.0,0.5,0.6666666666666666],"rouge2":[0.0,0.0,0.0],)"
            R"("rougeL":[1.0,0.5,0.6666666666666666],"rougeLsum":[1.0,0.5,0.6666666666666666]})");
}

TEST(Tokenize, KeepsRunsOfAsciiLettersAndDigits) {
  EXPECT_EQ(tokenize("Don't PANIC: it's 42-ish\n(x_1)", false),
            (Tokens{"don", "t", "panic", "it", "s", "42", "ish", "x", "1"}));
}

TEST(Tokenize, LowerCasesTheTwoForeignCharactersThatBecomeAscii) {
  EXPECT_EQ(tokenize("100\u212A", false), (Tokens{"100k"}));
  EXPECT_EQ(tokenize("TA\u0130L", false), (Tokens{"tai", "l"}));
}

TEST(Tokenize, SeparatesAtOtherForeignCharacters) {
  EXPECT_EQ(tokenize("caf\u00E9s \uFF21b na\u00EFve", false), (Tokens{"caf", "s", "b", "na", "ve"}));
}

TEST(Tokenize, SeparatesAtBytesThatAreNoUtf8) {
  EXPECT_EQ(tokenize("a\xFF"
                     "b\xC4"
                     "c\xE2\x84"
                     "d\xE2",
                     false),
            (Tokens{"a", "b", "c", "d"}));
  EXPECT_EQ(tokenize(std::string_view("a\0b", 3), false), (Tokens{"a", "b"}));
}

TEST(Tokenize, StemsWordsOfMoreThanThreeLetters) {
  EXPECT_EQ(tokenize("was cats sky skies", true), (Tokens{"was", "cat", "sky", "sky"}));
}

}  // namespace
}  // namespace transpool
