#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace transpool {

/// A text as numbers, one for each distinct token, counted up from 0.
using TokenIds = std::span<const std::uint32_t>;

/// One column of the table of longest common subsequences (LCS) of `rows` and a text that grows token by token. 64 rows
/// share a machine word and are advanced together, so that a column costs rows / 64 steps.
class LcsColumn {
 public:
  explicit LcsColumn(TokenIds rows);

  /// Back to the empty text.
  void clear();

  /// Appends one token to the text.
  void append(std::uint32_t token);

  /// Sets the bits of the rows that hold `token`, in as many words as words() has.
  void set_matches(std::uint32_t token, std::span<std::uint64_t> words) const;

  /// The LCS length of all rows and the text so far.
  std::size_t length() const;

  /// Bit i % 64 of word i / 64 is 0 where the LCS of the first i + 1 rows is one longer than that of the first i.
  const std::vector<std::uint64_t>& words() const { return words_; }
  void set_words(std::span<const std::uint64_t> words) { words_.assign(words.begin(), words.end()); }

 private:
  std::vector<std::uint64_t> words_;
  std::vector<std::uint64_t> matches_;  ///< scratch: the rows that hold the appended token; all 0 between calls
  std::vector<std::int64_t> first_;     ///< token -> the first row that holds it
  std::vector<std::int64_t> next_;      ///< row -> the next row with the same token
};

/// The length of the longest common subsequence. Only one column over the shorter text is kept, with one number for each
/// token id up to the highest in it.
std::size_t lcs_length(TokenIds a, TokenIds b);

/// Finds which tokens of one reference sentence take part in its LCS with candidate sentences. Of several longest
/// subsequences it reads out the one that rouge-score reads out, as rougeLsum depends on the choice.
class LcsReader {
 public:
  /// `reference` must outlive the reader.
  explicit LcsReader(TokenIds reference);

  /// Sets `taken` at the positions of the reference that the LCS with `candidate` uses; leaves the others.
  void mark(TokenIds candidate, std::vector<bool>& taken);

 private:
  void find_stops(TokenIds block);
  std::size_t read_back(TokenIds block, std::size_t row, std::vector<bool>& taken) const;

  TokenIds reference_;
  LcsColumn column_;
  std::vector<std::uint64_t> block_starts_;  ///< the column before each block of the candidate
  std::vector<std::uint64_t> stops_;         ///< for every column of one block, the rows where reading back stops
};

}  // namespace transpool
