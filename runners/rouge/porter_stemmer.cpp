#include "runners/rouge/porter_stemmer.h"

#include <array>
#include <cstddef>
#include <utility>

namespace transpool {
namespace {

/// What the rules ask about a stem, found in one pass from the left, so that a long run of y costs no more than any word.
struct Shape {
  int measure = 0;  ///< how often a vowel is followed by a consonant
  bool has_vowel = false;
  bool ends_in_consonant = false;
  bool ends_short = false;  ///< consonant, vowel, consonant other than w, x, y; or just vowel, consonant
};

constexpr bool always_vowel(char c) { return c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u'; }

Shape shape_of(std::string_view stem) {
  Shape shape;
  bool before_previous = false;  // was the letter two to the left a consonant
  bool previous = false;
  for (std::size_t i = 0; i < stem.size(); ++i) {
    // y is a consonant at the start of a word and after a vowel. A digit counts as a consonant.
    const bool consonant = stem[i] == 'y' ? i == 0 || !previous : !always_vowel(stem[i]);
    const bool closes_syllable = consonant && i > 0 && !previous;
    if (closes_syllable) ++shape.measure;
    if (!consonant) shape.has_vowel = true;
    const char c = stem[i];
    // Two letters are short whatever the second one is, three or more are not: "ax" is, "tax" is not.
    shape.ends_short = closes_syllable && (i == 1 || (before_previous && c != 'w' && c != 'x' && c != 'y'));
    before_previous = previous;
    previous = consonant;
  }
  shape.ends_in_consonant = previous;
  return shape;
}

bool ends_in_double_consonant(std::string_view word) {
  const auto size = word.size();
  return size >= 2 && word[size - 1] == word[size - 2] && shape_of(word).ends_in_consonant;
}

std::string_view without(std::string_view word, std::string_view suffix) {
  return word.substr(0, word.size() - suffix.size());
}

void replace_suffix(std::string& word, std::string_view suffix, std::string_view replacement) {
  word.resize(word.size() - suffix.size());
  word += replacement;
}

/// `suffix` becomes `replacement` where what stands before it has a measure of more than `measure_above`.
struct Rule {
  std::string_view suffix;
  std::string_view replacement;
  int measure_above = 0;
};

/// The first rule whose suffix fits decides, even if its condition then forbids the change.
template <std::size_t count>
void apply_first(const std::array<Rule, count>& rules, std::string& word) {
  for (const auto& rule : rules) {
    if (!word.ends_with(rule.suffix)) continue;
    if (shape_of(without(word, rule.suffix)).measure > rule.measure_above)
      replace_suffix(word, rule.suffix, rule.replacement);
    return;
  }
}

constexpr std::array<std::pair<std::string_view, std::string_view>, 16> irregular_words{{
    {"sky", "sky"},
    {"skies", "sky"},
    {"dying", "die"},
    {"lying", "lie"},
    {"tying", "tie"},
    {"news", "news"},
    {"innings", "inning"},
    {"inning", "inning"},
    {"outings", "outing"},
    {"outing", "outing"},
    {"cannings", "canning"},
    {"canning", "canning"},
    {"howe", "howe"},
    {"proceed", "proceed"},
    {"exceed", "exceed"},
    {"succeed", "succeed"},
}};

constexpr std::array<Rule, 20> derived_suffixes{{
    {"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"}, {"anci", "ance"}, {"izer", "ize"},
    {"bli", "ble"},     {"alli", "al"},     {"entli", "ent"}, {"eli", "e"},     {"ousli", "ous"},
    {"ization", "ize"}, {"ation", "ate"},   {"ator", "ate"},  {"alism", "al"},  {"iveness", "ive"},
    {"fulness", "ful"}, {"ousness", "ous"}, {"aliti", "al"},  {"iviti", "ive"}, {"biliti", "ble"},
}};

constexpr std::array<Rule, 7> adjective_suffixes{{
    {"icate", "ic"},
    {"ative", ""},
    {"alize", "al"},
    {"iciti", "ic"},
    {"ical", "ic"},
    {"ful", ""},
    {"ness", ""},
}};

constexpr std::array<Rule, 19> removable_suffixes{{
    {"al", "", 1},  {"ance", "", 1},  {"ence", "", 1}, {"er", "", 1},  {"ic", "", 1},  {"able", "", 1}, {"ible", "", 1},
    {"ant", "", 1}, {"ement", "", 1}, {"ment", "", 1}, {"ent", "", 1}, {"ou", "", 1},  {"ism", "", 1},  {"ate", "", 1},
    {"iti", "", 1}, {"ous", "", 1},   {"ive", "", 1},  {"ize", "", 1}, {"ion", "", 1},
}};

void strip_plural(std::string& word) {
  if (word.ends_with("ies")) replace_suffix(word, "ies", word.size() == 4 ? "ie" : "i");
  else if (word.ends_with("sses")) replace_suffix(word, "es", "");
  else if (word.ends_with("s") && !word.ends_with("ss")) word.pop_back();
}

/// After -ed or -ing was taken off: gives back the e that the spelling dropped, or takes one of two equal consonants.
void mend_ending(std::string& stem) {
  const bool dropped = stem.ends_with("at") || stem.ends_with("bl") || stem.ends_with("iz");
  if (!dropped && ends_in_double_consonant(stem)) {
    const char last = stem.back();
    if (last != 'l' && last != 's' && last != 'z') stem.pop_back();
    return;
  }
  const auto shape = shape_of(stem);
  if (dropped || (shape.measure == 1 && shape.ends_short)) stem += 'e';
}

void strip_past_and_participle(std::string& word) {
  if (word.ends_with("ied")) return replace_suffix(word, "ied", word.size() == 4 ? "ie" : "i");
  if (word.ends_with("eed")) {
    if (shape_of(without(word, "eed")).measure > 0) word.pop_back();
    return;
  }
  for (const std::string_view suffix : {"ed", "ing"}) {
    if (!word.ends_with(suffix) || !shape_of(without(word, suffix)).has_vowel) continue;
    replace_suffix(word, suffix, "");
    return mend_ending(word);
  }
}

void soften_final_y(std::string& word) {
  if (word.size() > 2 && word.ends_with("y") && shape_of(without(word, "y")).ends_in_consonant) word.back() = 'i';
}

void reduce_derived_suffix(std::string& word) {
  // -alli goes first, and what it leaves is looked at again: "rationalli" becomes "rational" and then "ration".
  if (word.ends_with("alli") && shape_of(without(word, "alli")).measure > 0) replace_suffix(word, "alli", "al");
  // The l counts with the stem here, so that the short "geologi" becomes "geolog" as "archaeologi" becomes "archaeolog".
  if (word.ends_with("logi")) {
    if (shape_of(without(word, "ogi")).measure > 0) word.pop_back();
  } else if (word.ends_with("fulli")) {
    if (shape_of(without(word, "fulli")).measure > 0) replace_suffix(word, "fulli", "ful");
  } else {
    apply_first(derived_suffixes, word);
  }
}

void remove_suffix(std::string& word) {
  if (word.ends_with("ion") && !word.ends_with("sion") && !word.ends_with("tion")) return;
  apply_first(removable_suffixes, word);
}

void remove_final_e(std::string& word) {
  if (!word.ends_with("e")) return;
  const auto shape = shape_of(without(word, "e"));
  if (shape.measure > 1 || (shape.measure == 1 && !shape.ends_short)) word.pop_back();
}

void remove_double_l(std::string& word) {
  if (word.ends_with("ll") && shape_of(without(word, "l")).measure > 1) word.pop_back();
}

}  // namespace

std::string porter_stem(std::string_view word) {
  for (const auto& [irregular, stem] : irregular_words)
    if (word == irregular) return std::string(stem);
  std::string stem(word);
  if (stem.size() <= 2) return stem;
  strip_plural(stem);
  strip_past_and_participle(stem);
  soften_final_y(stem);
  reduce_derived_suffix(stem);
  apply_first(adjective_suffixes, stem);
  remove_suffix(stem);
  remove_final_e(stem);
  remove_double_l(stem);
  return stem;
}

}  // namespace transpool
