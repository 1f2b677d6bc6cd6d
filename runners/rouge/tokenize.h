#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace transpool {

/// Lower-cases `text` and turns everything but letters, digits and newlines into spaces. Only a-z and 0-9 are letters and
/// digits, after the Unicode lower-casing that Python's str.lower() does. Bytes that are no UTF-8 become spaces.
std::string normalize(std::string_view text);

/// The words of one normalized line or text, as views into it.
std::vector<std::string_view> split_words(std::string_view normalized);

/// The lines of a normalized text, without their newlines; sentences are taken to stand on lines of their own.
std::vector<std::string_view> split_lines(std::string_view normalized);

/// The token that ROUGE compares: the Porter stem of a word of more than 3 letters if `stem`, else the word itself.
std::string rouge_token(std::string_view word, bool stem);

/// All tokens of a text in order. Newlines only separate.
std::vector<std::string> tokenize(std::string_view text, bool stem);

}  // namespace transpool
