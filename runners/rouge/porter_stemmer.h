#pragma once

#include <string>
#include <string_view>

namespace transpool {

/// The stem of a lower-case word of letters and digits, by Porter's algorithm (1980) with the changes that NLTK makes by
/// default (its mode NLTK_EXTENSIONS): a table of irregular words, words of one or two letters kept, another rule for a
/// final y, and more suffixes. The scores published with rouge-score rest on those changes.
std::string porter_stem(std::string_view word);

}  // namespace transpool
