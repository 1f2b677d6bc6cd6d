#include "runners/rouge/rouge.h"

#include "runners/rouge/lcs.h"
#include "runners/rouge/tokenize.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <unordered_map>
#include <vector>

namespace transpool {
namespace {

/// Numbers the distinct tokens of a pair of texts, so that all else compares numbers, and each word is stemmed once. The
/// words given to it must outlive it.
class Vocabulary {
 public:
  explicit Vocabulary(bool stem) : stem_(stem) {}

  std::uint32_t id(std::string_view word) {
    const auto [known, is_new] = by_word_.try_emplace(word, static_cast<std::uint32_t>(by_word_.size()));
    if (is_new && stem_) {
      const auto next = static_cast<std::uint32_t>(by_token_.size());
      known->second = by_token_.try_emplace(rouge_token(word, true), next).first->second;
    }
    return known->second;
  }

  std::size_t size() const { return by_word_.size(); }

 private:
  bool stem_;
  std::unordered_map<std::string_view, std::uint32_t> by_word_;
  std::unordered_map<std::string, std::uint32_t> by_token_;
};

/// A text as token numbers, with its lines as ranges of them.
class Document {
 public:
  Document(std::string_view normalized, Vocabulary& vocabulary) {
    for (const auto line : split_lines(normalized)) {
      for (const auto word : split_words(line)) tokens_.push_back(vocabulary.id(word));
      line_ends_.push_back(tokens_.size());
    }
  }

  TokenIds tokens() const { return tokens_; }
  std::size_t size() const { return tokens_.size(); }
  std::size_t lines() const { return line_ends_.size(); }

  TokenIds line(std::size_t index) const {
    const auto start = index == 0 ? 0 : line_ends_[index - 1];
    return tokens().subspan(start, line_ends_[index] - start);
  }

 private:
  std::vector<std::uint32_t> tokens_;
  std::vector<std::size_t> line_ends_;
};

RougeScore score(std::size_t hits, std::size_t in_reference, std::size_t in_candidate) {
  if (hits == 0) return {};
  const double precision = static_cast<double>(hits) / static_cast<double>(in_candidate);
  const double recall = static_cast<double>(hits) / static_cast<double>(in_reference);
  return {precision, recall, 2 * precision * recall / (precision + recall)};
}

/// Each n-gram as one number, sorted.
std::vector<std::uint64_t> sorted_ngrams(TokenIds tokens, std::size_t n) {
  std::vector<std::uint64_t> ngrams;
  for (std::size_t end = n; end <= tokens.size(); ++end) {
    std::uint64_t ngram = 0;
    for (const auto token : tokens.subspan(end - n, n)) ngram = ngram << 32 | token;
    ngrams.push_back(ngram);
  }
  std::sort(ngrams.begin(), ngrams.end());
  return ngrams;
}

/// n is 1 or 2. An n-gram counts as often as it stands in both texts.
RougeScore ngram_score(const Document& reference, const Document& candidate, std::size_t n) {
  const auto in_reference = sorted_ngrams(reference.tokens(), n);
  const auto in_candidate = sorted_ngrams(candidate.tokens(), n);
  std::vector<std::uint64_t> common;
  std::set_intersection(in_reference.begin(), in_reference.end(), in_candidate.begin(), in_candidate.end(),
                        std::back_inserter(common));
  return score(common.size(), in_reference.size(), in_candidate.size());
}

std::vector<std::int64_t> counts(TokenIds tokens, std::size_t vocabulary_size) {
  std::vector<std::int64_t> all(vocabulary_size, 0);
  for (const auto token : tokens) ++all[token];
  return all;
}

/// A reference token is a hit if the LCS of its line with any line of the candidate uses it, but no token is hit more
/// often than the candidate holds it.
RougeScore summary_score(const Document& reference, const Document& candidate, std::size_t vocabulary_size) {
  auto left = counts(candidate.tokens(), vocabulary_size);
  std::size_t hits = 0;
  for (std::size_t r = 0; r < reference.lines(); ++r) {
    const auto line = reference.line(r);
    std::vector<bool> taken(line.size(), false);
    LcsReader reader(line);
    for (std::size_t c = 0; c < candidate.lines(); ++c) reader.mark(candidate.line(c), taken);
    for (std::size_t i = 0; i < line.size(); ++i)
      if (taken[i] && left[line[i]]-- > 0) ++hits;
  }
  return score(hits, reference.size(), candidate.size());
}

}  // namespace

RougeScores rouge(std::string_view reference, std::string_view candidate, bool stem) {
  const auto normal_reference = normalize(reference);
  const auto normal_candidate = normalize(candidate);
  Vocabulary vocabulary(stem);
  const Document a(normal_reference, vocabulary);
  const Document b(normal_candidate, vocabulary);
  RougeScores scores;
  scores.rouge1 = ngram_score(a, b, 1);
  scores.rouge2 = ngram_score(a, b, 2);
  scores.rougeL = score(lcs_length(a.tokens(), b.tokens()), a.size(), b.size());
  scores.rougeLsum = summary_score(a, b, vocabulary.size());
  return scores;
}

Json rouge_protocol(bool stem) {
  Json protocol = Json::object();
  protocol["version"] = "equal to rouge-score 0.1.2";
  protocol["tokens"] = "lower-cased, runs of a-z and 0-9";
  protocol["stemming"] = stem ? "Porter with NLTK's extensions, words of more than 3 letters" : "none";
  protocol["sentences"] = "split at newlines (rougeLsum)";
  protocol["aggregation"] = "plain mean over documents";
  return protocol;
}

Json to_json(const RougeScores& scores) {
  Json json = Json::object();
  for (const auto& kind : rouge_kinds) {
    const auto& one = scores.*kind.score;
    json[kind.name] = {one.precision, one.recall, one.fmeasure};
  }
  return json;
}

}  // namespace transpool
