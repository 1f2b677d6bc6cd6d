#include "runners/data/dataset.h"
#include "runners/data/random.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace transpool {
namespace {

/// Pronounceable words of two to four syllables, all different. Their last letter is one that stemming leaves alone.
std::vector<std::string> make_words(Random& random, std::size_t count) {
  const std::string consonants = "bdfgkmnprtvz";
  const std::string vowels = "aiou";
  const std::string endings = "kmnprtb";
  std::set<std::string> seen;
  std::vector<std::string> words;
  while (words.size() < count) {
    std::string word;
    for (auto syllables = 1 + random.below(3); syllables > 0; --syllables) {
      word += consonants[random.below(consonants.size())];
      word += vowels[random.below(vowels.size())];
    }
    word += consonants[random.below(consonants.size())];
    word += vowels[random.below(vowels.size())];
    word += endings[random.below(endings.size())];
    if (seen.insert(word).second) words.push_back(word);
  }
  return words;
}

struct Task {
  std::int64_t length, planted;
  bool alphabetical;
  std::vector<std::string> salient, filler;
};

Document make_document(Random& random, const Task& task, const std::string& id) {
  const auto words = random.distinct(task.planted, static_cast<std::int64_t>(task.salient.size()));
  auto places = random.distinct(task.planted, task.length);
  std::sort(places.begin(), places.end());
  std::vector<std::string> text(static_cast<std::size_t>(task.length));
  for (auto& word : text) word = task.filler[random.below(task.filler.size())];
  std::vector<std::string> target;
  for (std::size_t i = 0; i < places.size(); ++i) {
    target.push_back(task.salient[static_cast<std::size_t>(words[i])]);
    text[static_cast<std::size_t>(places[i])] = target.back();
  }
  if (task.alphabetical) std::sort(target.begin(), target.end());
  return {id, join(text, " "), join(target, " "), places};
}

/// Drawn from a stream of its own, so that no split depends on the size of another.
Split make_split(std::uint64_t seed, const Task& task, const std::string& name, std::int64_t count) {
  Random random(seed);
  Split split;
  for (std::int64_t i = 0; i < count; ++i)
    split.documents.push_back(make_document(random, task, fmt::format("{}-{}", name, i)));
  split.counts = {{"read", count}, {"kept", count}};
  return split;
}

Corpus load(const Options& options, std::uint64_t seed, const Where& where) {
  if (options.integer("planted") > std::min(options.integer("length"), options.integer("salient_vocabulary")))
    (where / "planted")
        .fail(fmt::format("{} is out of range; allowed: at most length and salient_vocabulary", options.integer("planted")));
  Random random(seed ^ 0x7472616e73706f6fULL);
  auto words = make_words(
      random, static_cast<std::size_t>(options.integer("salient_vocabulary") + options.integer("filler_vocabulary")));
  const auto border = words.begin() + options.integer("salient_vocabulary");
  const Task task{options.integer("length"),
                  options.integer("planted"),
                  options.text("order") == "alphabetical",
                  {words.begin(), border},
                  {border, words.end()}};
  const auto train = random.next(), validation = random.next(), test = random.next();
  Corpus corpus;
  corpus.train = make_split(train, task, "train", options.integer("train_documents"));
  corpus.validation = make_split(validation, task, "validation", options.integer("validation_documents"));
  corpus.test = make_split(test, task, "test", options.integer("test_documents"));
  return corpus;
}

OptionSpec count_of(const std::string& name, std::int64_t fallback, const std::string& meaning) {
  return {.name = name, .type = OptionType::integer, .fallback = fallback, .meaning = meaning, .minimum = 1, .maximum = 1e7};
}

const RegisterDataset registration({
    .name = "planted_salience",
    .description = "filler words with a few salient words planted at random places; the target is those words",
    .options = {count_of("length", 256, "words of a document"),
                count_of("planted", 8, "salient words of a document, all different"),
                count_of("salient_vocabulary", 32, "words that are salient wherever they stand"),
                count_of("filler_vocabulary", 92, "words that never are"),
                {.name = "order",
                 .type = OptionType::choice,
                 .fallback = "alphabetical",
                 .meaning = "order of the target; source order takes far longer to learn",
                 .choices = {"alphabetical", "source"}},
                count_of("train_documents", 4096, "documents to train on"),
                count_of("validation_documents", 64, "documents to validate on"),
                count_of("test_documents", 128, "documents to score")},
    .load = load,
    .default_tokenizer = "word_vocabulary",
});

}  // namespace
}  // namespace transpool
