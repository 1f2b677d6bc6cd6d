#include "runners/rouge/lcs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

namespace transpool {
namespace {

constexpr std::size_t bits = 64;
constexpr std::int64_t none = -1;
constexpr std::size_t most_kept_words = std::size_t{1} << 20;  // 8 MiB of columns

std::size_t words_for(std::size_t rows) { return (rows + bits - 1) / bits; }

/// All columns at once where they fit; else blocks of the square root, which keeps the fewest columns at a time.
std::size_t block_length(std::size_t columns, std::size_t words_per_column) {
  const auto root = static_cast<std::size_t>(std::ceil(std::sqrt(static_cast<double>(columns))));
  return std::max(root, most_kept_words / std::max<std::size_t>(words_per_column, 1));
}

/// One more than the index of the highest bit that is set among the first `rows`; 0 if none is.
std::size_t rows_up_to_highest(std::span<const std::uint64_t> words, std::size_t rows) {
  auto w = (rows - 1) / bits;
  auto word = words[w] << (bits - 1 - (rows - 1) % bits) >> (bits - 1 - (rows - 1) % bits);
  while (word == 0 && w > 0) word = words[--w];
  return word == 0 ? 0 : w * bits + static_cast<std::size_t>(std::bit_width(word));
}

}  // namespace

LcsColumn::LcsColumn(TokenIds rows)
    : words_(words_for(rows.size()), ~std::uint64_t{0}), matches_(words_.size(), 0), next_(rows.size(), none) {
  if (rows.empty()) return;
  first_.assign(std::size_t{*std::max_element(rows.begin(), rows.end())} + 1, none);
  for (std::size_t row = rows.size(); row-- > 0;) {
    next_[row] = first_[rows[row]];
    first_[rows[row]] = static_cast<std::int64_t>(row);
  }
}

void LcsColumn::clear() { std::fill(words_.begin(), words_.end(), ~std::uint64_t{0}); }

void LcsColumn::set_matches(std::uint32_t token, std::span<std::uint64_t> words) const {
  if (token >= first_.size()) return;
  for (auto row = first_[token]; row != none; row = next_[static_cast<std::size_t>(row)])
    words[static_cast<std::size_t>(row) / bits] |= std::uint64_t{1} << (static_cast<std::size_t>(row) % bits);
}

void LcsColumn::append(std::uint32_t token) {
  if (token >= first_.size() || first_[token] == none) return;  // a token that no row holds repeats the column
  set_matches(token, matches_);
  // Within each run of rows up to a step, a match moves the step down to the lowest matching row. As an addition that is
  // the carry which runs from the match to the old step; it may cross from word to word.
  std::uint64_t carry = 0;
  for (auto w = static_cast<std::size_t>(first_[token]) / bits; w < words_.size(); ++w) {
    const auto old = words_[w];
    const auto added = old + (old & matches_[w]);
    const auto sum = added + carry;
    carry = static_cast<std::uint64_t>(added < old) | static_cast<std::uint64_t>(sum < added);
    words_[w] = sum | (old & ~matches_[w]);
    matches_[w] = 0;
  }
}

std::size_t LcsColumn::length() const {
  // The bits past the last row stay 1, because nothing matches there.
  std::size_t steps = 0;
  for (const auto word : words_) steps += bits - static_cast<std::size_t>(std::popcount(word));
  return steps;
}

std::size_t lcs_length(TokenIds a, TokenIds b) {
  const bool a_is_shorter = a.size() < b.size();
  LcsColumn column(a_is_shorter ? a : b);
  for (const auto token : a_is_shorter ? b : a) column.append(token);
  return column.length();
}

LcsReader::LcsReader(TokenIds reference) : reference_(reference), column_(reference) {}

void LcsReader::mark(TokenIds candidate, std::vector<bool>& taken) {
  const auto words = column_.words().size();
  const auto length = block_length(candidate.size(), words);
  block_starts_.clear();
  column_.clear();
  for (std::size_t start = 0; start < candidate.size(); start += length) {
    block_starts_.insert(block_starts_.end(), column_.words().begin(), column_.words().end());
    if (start + length >= candidate.size()) break;  // the last block's columns come when their stops are found
    for (const auto token : candidate.subspan(start, length)) column_.append(token);
  }
  std::size_t row = reference_.size();
  for (auto block = (candidate.size() + length - 1) / length; row > 0 && block-- > 0;) {
    column_.set_words(std::span(block_starts_).subspan(block * words, words));
    const auto start = block * length;
    const auto tokens = candidate.subspan(start, std::min(length, candidate.size() - start));
    find_stops(tokens);
    row = read_back(tokens, row, taken);
  }
}

void LcsReader::find_stops(TokenIds block) {
  const auto words = column_.words().size();
  stops_.resize(block.size() * words);
  for (std::size_t i = 0; i < block.size(); ++i) {
    column_.append(block[i]);
    const auto stops = std::span(stops_).subspan(i * words, words);
    std::transform(column_.words().begin(), column_.words().end(), stops.begin(), std::bit_not());
    column_.set_matches(block[i], stops);
  }
}

std::size_t LcsReader::read_back(TokenIds block, std::size_t row, std::vector<bool>& taken) const {
  const auto words = column_.words().size();
  for (auto column = block.size(); row > 0 && column > 0; --column) {
    // The tie rule: a match is taken; else the reference's tokens are dropped down to the first one without which the LCS
    // would be shorter, which is where the column steps up; and only then the candidate's token. No stop: no LCS is left.
    row = rows_up_to_highest(std::span(stops_).subspan((column - 1) * words, words), row);
    if (row > 0 && reference_[row - 1] == block[column - 1]) taken[--row] = true;
  }
  return row;
}

}  // namespace transpool
