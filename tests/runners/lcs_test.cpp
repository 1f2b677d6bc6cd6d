#include "runners/rouge/lcs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace transpool {
namespace {

using Ids = std::vector<std::uint32_t>;
using Table = std::vector<std::vector<int>>;

/// The textbook table, of which the fast code keeps only where it steps.
Table lcs_table(const Ids& rows, const Ids& columns) {
  Table table(rows.size() + 1, std::vector<int>(columns.size() + 1, 0));
  for (std::size_t i = 1; i <= rows.size(); ++i)
    for (std::size_t j = 1; j <= columns.size(); ++j)
      table[i][j] = rows[i - 1] == columns[j - 1] ? table[i - 1][j - 1] + 1 : std::max(table[i - 1][j], table[i][j - 1]);
  return table;
}

std::vector<bool> read_back(const Table& table, const Ids& rows, const Ids& columns) {
  std::vector<bool> taken(rows.size(), false);
  for (std::size_t i = rows.size(), j = columns.size(); i > 0 && j > 0;) {
    if (rows[i - 1] == columns[j - 1]) {
      taken[--i] = true;
      --j;
    } else if (table[i][j - 1] > table[i - 1][j]) {
      --j;
    } else {
      --i;
    }
  }
  return taken;
}

Ids random_ids(std::mt19937& generator, std::size_t size, std::uint32_t vocabulary) {
  Ids ids(size);
  for (auto& id : ids) id = static_cast<std::uint32_t>(generator() % vocabulary);
  return ids;
}

std::vector<bool> taken_by(const Ids& reference, const Ids& candidate) {
  std::vector<bool> taken(reference.size(), false);
  LcsReader(reference).mark(candidate, taken);
  return taken;
}

TEST(LcsLength, IsZeroForAnEmptyText) {
  EXPECT_EQ(lcs_length(Ids{}, Ids{}), 0u);
  EXPECT_EQ(lcs_length(Ids{1, 2}, Ids{}), 0u);
  EXPECT_EQ(lcs_length(Ids{}, Ids{1, 2}), 0u);
}

TEST(LcsLength, IsTheWholeLengthForEqualTextsAroundTheWordSize) {
  for (const std::size_t size : {1u, 63u, 64u, 65u, 127u, 128u, 129u, 640u}) {
    const Ids same(size, 3);
    EXPECT_EQ(lcs_length(same, same), size);
  }
}

TEST(Lcs, AgreesWithTheWholeTableOnRandomTexts) {
  std::mt19937 generator(1);
  for (int round = 0; round < 400; ++round) {
    const auto vocabulary = 1 + static_cast<std::uint32_t>(generator() % 40);
    const auto a = random_ids(generator, generator() % 200, vocabulary);
    const auto b = random_ids(generator, generator() % 200, vocabulary);
    const auto table = lcs_table(a, b);
    EXPECT_EQ(lcs_length(a, b), static_cast<std::size_t>(table[a.size()][b.size()]));
    EXPECT_EQ(taken_by(a, b), read_back(table, a, b));
  }
}

TEST(LcsReader, AddsTheTokensOfEachCandidateToThoseTakenBefore) {
  const Ids reference = {1, 2, 3, 4, 5};
  std::vector<bool> taken(reference.size(), false);
  LcsReader reader(reference);
  reader.mark(Ids{1, 2}, taken);
  reader.mark(Ids{9, 5}, taken);
  EXPECT_EQ(taken, (std::vector<bool>{true, true, false, false, true}));
}

TEST(LcsReader, DropsTheEndOfTheReferenceWhereEitherTokenCouldBeTaken) {
  EXPECT_EQ(taken_by(Ids{1, 2, 3}, Ids{3, 2}), (std::vector<bool>{false, true, false}));
}

TEST(LcsReader, GivesTheSameWhereTheColumnsAreTooManyToKeepAtOnce) {
  std::mt19937 generator(2);
  // 9000 columns of 141 words are more than the reader keeps, so that it goes block by block.
  const auto a = random_ids(generator, 9000, 500);
  const auto b = random_ids(generator, 9000, 500);
  EXPECT_EQ(taken_by(a, b), read_back(lcs_table(a, b), a, b));
}

}  // namespace
}  // namespace transpool
