#include "runners/rouge/tokenize.h"

#include "runners/rouge/porter_stemmer.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace transpool {
namespace {

// Of all characters outside ASCII, Unicode lower-cases exactly these two to something with an ASCII letter in it. Neither
// sequence can start inside another character of valid UTF-8, because both begin with a lead byte.
constexpr std::string_view kelvin_sign = "\xE2\x84\xAA";     // U+212A: "k"
constexpr std::string_view capital_i_with_dot = "\xC4\xB0";  // U+0130: "i" and a combining dot, which separates words
constexpr std::size_t longest_unstemmed_word = 3;

constexpr std::array<char, 256> make_character_table() {
  std::array<char, 256> table{};
  for (auto& entry : table) entry = ' ';
  for (int c = '0'; c <= '9'; ++c) table[static_cast<std::size_t>(c)] = static_cast<char>(c);
  for (int c = 'a'; c <= 'z'; ++c) table[static_cast<std::size_t>(c)] = static_cast<char>(c);
  for (int c = 'A'; c <= 'Z'; ++c) table[static_cast<std::size_t>(c)] = static_cast<char>(c - 'A' + 'a');
  table['\n'] = '\n';
  return table;
}

constexpr auto character_table = make_character_table();

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  for (auto start = text.find_first_not_of(separators); start != std::string_view::npos;) {
    const auto end = std::min(text.find_first_of(separators, start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = text.find_first_not_of(separators, end);
  }
  return parts;
}

}  // namespace

std::string normalize(std::string_view text) {
  std::string normal;
  normal.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto rest = text.substr(i);
    if (rest.starts_with(kelvin_sign)) {
      normal += 'k';
      i += kelvin_sign.size() - 1;
    } else if (rest.starts_with(capital_i_with_dot)) {
      normal += "i ";
      i += capital_i_with_dot.size() - 1;
    } else {
      normal += character_table[static_cast<unsigned char>(text[i])];
    }
  }
  return normal;
}

std::vector<std::string_view> split_words(std::string_view normalized) { return split(normalized, " \n"); }

std::vector<std::string_view> split_lines(std::string_view normalized) { return split(normalized, "\n"); }

std::string rouge_token(std::string_view word, bool stem) {
  return stem && word.size() > longest_unstemmed_word ? porter_stem(word) : std::string(word);
}

std::vector<std::string> tokenize(std::string_view text, bool stem) {
  const auto normal = normalize(text);
  std::vector<std::string> tokens;
  for (const auto word : split_words(normal)) tokens.push_back(rouge_token(word, stem));
  return tokens;
}

}  // namespace transpool
