#include "runners/rouge/porter_stemmer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace transpool {
namespace {

TEST(PorterStemmer, GivesTheStemOfEveryGoldenWord) {
  std::ifstream file(TEST_FOLDER "/runners/golden/rouge/stems.txt");
  ASSERT_TRUE(file);
  int words = 0;
  for (std::string word, stem; file >> word >> stem; ++words) EXPECT_EQ(porter_stem(word), stem) << "of " << word;
  EXPECT_GT(words, 5000);
}

TEST(PorterStemmer, KeepsWordsOfOneOrTwoLetters) {
  EXPECT_EQ(porter_stem("is"), "is");
  EXPECT_EQ(porter_stem("s"), "s");
  EXPECT_EQ(porter_stem(""), "");
}

TEST(PorterStemmer, KnowsIrregularWords) {
  EXPECT_EQ(porter_stem("skies"), "sky");
  EXPECT_EQ(porter_stem("dying"), "die");
  EXPECT_EQ(porter_stem("innings"), "inning");
  EXPECT_EQ(porter_stem("proceed"), "proceed");
}

TEST(PorterStemmer, DiffersFromTheOriginalAlgorithmWhereNltkDoes) {
  EXPECT_EQ(porter_stem("enjoy"), "enjoy");     // the original: enjoi
  EXPECT_EQ(porter_stem("died"), "die");        // the original: di
  EXPECT_EQ(porter_stem("geology"), "geolog");  // the original: geologi
}

TEST(PorterStemmer, TakesTimeInProportionToARunOfTheSameLetter) {
  const std::string run(1'000'000, 'y');
  EXPECT_EQ(porter_stem(run).size(), run.size());
}

}  // namespace
}  // namespace transpool
