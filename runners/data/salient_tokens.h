#pragma once

#include "runners/data/tokenizer.h"

namespace transpool {

/// Ids, ascending, of the words that the documents mark as salient; none where the data set does not know them.
std::vector<std::int64_t> salient_tokens(const Split& split, const Tokenizer& tokenizer);

}  // namespace transpool
