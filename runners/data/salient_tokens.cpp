#include "runners/data/salient_tokens.h"

#include <iterator>
#include <set>
#include <sstream>

namespace transpool {

std::vector<std::int64_t> salient_tokens(const Split& split, const Tokenizer& tokenizer) {
  std::set<std::string> words;
  for (const auto& document : split.documents) {
    if (document.salient.empty()) continue;
    std::istringstream text(document.source);
    const std::vector<std::string> all{std::istream_iterator<std::string>(text), {}};
    for (const auto position : document.salient) words.insert(all.at(static_cast<std::size_t>(position)));
  }
  std::set<std::int64_t> ids;
  for (const auto& word : words)
    for (const auto id : tokenizer.encode(word))
      if (id >= Tokenizer::specials) ids.insert(id);
  return {ids.begin(), ids.end()};
}

}  // namespace transpool
