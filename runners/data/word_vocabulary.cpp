#include "runners/data/tokenizer.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace transpool {
namespace {

/// Calls `take` with each word and each line end, a text "\n".
template <class Take>
void for_words(std::string_view text, const Take& take) {
  std::size_t start = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : ' ';
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') continue;
    if (i > start) take(std::string(text.substr(start, i - start)));
    if (c == '\n') take(std::string("\n"));
    start = i + 1;
  }
}

class WordVocabulary : public Tokenizer {
 public:
  explicit WordVocabulary(std::vector<std::string> words) : words_(std::move(words)) {
    for (std::size_t i = 0; i < words_.size(); ++i) ids_[words_[i]] = static_cast<std::int32_t>(i) + specials;
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    for_words(text, [&](const std::string& word) {
      const auto found = ids_.find(word);
      ids.push_back(found == ids_.end() ? unknown : found->second);
    });
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    std::string text;
    for (const auto id : ids) {
      if (id < 0 || id >= size()) throw std::out_of_range("token id " + std::to_string(id) + " is not in the vocabulary");
      if (id == pad || id == bos || id == eos) continue;
      const auto word = id == unknown ? std::string(unknown_text) : words_[static_cast<std::size_t>(id - specials)];
      if (!text.empty() && text.back() != '\n' && word != "\n") text += ' ';
      text += word;
    }
    return text;
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(words_.size()) + specials; }

  void save(const std::filesystem::path& folder) const override {
    write_tokenizer_description(folder, "word_vocabulary", {{"words", words_}});
  }

 private:
  std::vector<std::string> words_;
  std::map<std::string, std::int32_t> ids_;
};

std::unique_ptr<Tokenizer> build(const Options& options, const Split& training, std::uint64_t, const Where&) {
  std::map<std::string, std::int64_t> counts;
  for (const auto& document : training.documents)
    for (const auto* text : {&document.source, &document.target})
      for_words(*text, [&](const std::string& word) { ++counts[word]; });
  std::vector<std::pair<std::int64_t, std::string>> ranked;
  for (const auto& [word, count] : counts) ranked.emplace_back(-count, word);
  std::sort(ranked.begin(), ranked.end());
  const auto limit = std::max<std::int64_t>(0, options.integer("vocabulary_size") - Tokenizer::specials);
  if (static_cast<std::int64_t>(ranked.size()) > limit) ranked.resize(static_cast<std::size_t>(limit));
  std::vector<std::string> words;
  for (const auto& entry : ranked) words.push_back(entry.second);
  return std::make_unique<WordVocabulary>(words);
}

std::unique_ptr<Tokenizer> load(const std::filesystem::path&, const Json& description, const Where& where) {
  const auto is_text = [](const Json& word) { return word.is_string(); };
  if (!description.contains("words") || !description["words"].is_array() ||
      !std::all_of(description["words"].begin(), description["words"].end(), is_text))
    (where / "words").fail("is missing, or no list of words");
  return std::make_unique<WordVocabulary>(description["words"].get<std::vector<std::string>>());
}

const RegisterTokenizer registration({
    .name = "word_vocabulary",
    .description = "words between white space, the most frequent of the training documents",
    .options = {{.name = "vocabulary_size",
                 .type = OptionType::integer,
                 .fallback = 32000,
                 .meaning = "ids at most, the four special ones included",
                 .minimum = 5,
                 .maximum = 1e7}},
    .build = build,
    .load = load,
});

}  // namespace
}  // namespace transpool
