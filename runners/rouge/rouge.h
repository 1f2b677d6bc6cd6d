#pragma once

#include <string_view>
#include "operators/error.h"

namespace transpool {

/// Each between 0 and 1.
struct RougeScore {
  double precision = 0;  ///< the share of the candidate that the reference holds
  double recall = 0;     ///< the share of the reference that the candidate holds
  double fmeasure = 0;   ///< their harmonic mean
};

struct RougeScores {
  RougeScore rouge1;     ///< words
  RougeScore rouge2;     ///< pairs of adjacent words
  RougeScore rougeL;     ///< longest common subsequence of the whole texts
  RougeScore rougeLsum;  ///< union of the longest common subsequences, sentence by sentence; a sentence is a line
};

/// One of the four scores, with the name that reports and files give it.
struct RougeKind {
  const char* name;
  RougeScore RougeScores::*score;
};

inline constexpr RougeKind rouge_kinds[] = {{"rouge1", &RougeScores::rouge1},
                                            {"rouge2", &RougeScores::rouge2},
                                            {"rougeL", &RougeScores::rougeL},
                                            {"rougeLsum", &RougeScores::rougeLsum}};

/// Compares two UTF-8 texts. Equal to what rouge-score 0.1.2 gives, also where the choice is arbitrary: its tokens, its
/// stemmer, and its way out of ties.
RougeScores rouge(std::string_view reference, std::string_view candidate, bool stem);

/// How the scores came about: version, tokens, stemming, sentences, aggregation. To be shown with every score.
Json rouge_protocol(bool stem);

/// {"rouge1": [precision, recall, fmeasure], "rouge2": ..., "rougeL": ..., "rougeLsum": ...}
Json to_json(const RougeScores& scores);

}  // namespace transpool
