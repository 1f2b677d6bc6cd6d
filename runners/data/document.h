#pragma once

#include "operators/error.h"

#include <cstdint>
#include <string>
#include <vector>

namespace transpool {

/// One article and its summary. Sentences are separated by newlines, which is where rougeLsum splits.
struct Document {
  std::string id;
  std::string source;
  std::string target;
  std::vector<std::int32_t> salient =
      {};  ///< where the data set knows it: positions (word indices) of the words that matter
};

/// The documents of one split, and what was read, kept and skipped to get them.
struct Split {
  std::vector<Document> documents;
  Json counts = Json::object();
};

struct Corpus {
  Split train;
  Split validation;
  Split test;
};

/// The number of words between white space.
std::int64_t count_words(const std::string& text);

}  // namespace transpool
