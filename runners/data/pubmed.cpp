#include "runners/data/dataset.h"
#include "runners/data/random.h"
#include "runners/data/text_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace transpool {
namespace {

/// What became of a split's lines.
struct Counts {
  std::int64_t read = 0, kept = 0, empty_article = 0, empty_abstract = 0, abstract_in_body = 0, duplicate_id = 0,
               source_words = 0, target_words = 0;

  Json json() const {
    const double documents = std::max<double>(1, static_cast<double>(kept));
    return Json{{"read", read},
                {"kept", kept},
                {"skipped_empty_article", empty_article},
                {"skipped_empty_abstract", empty_abstract},
                {"abstract_in_body", abstract_in_body},
                {"duplicate_id", duplicate_id},
                {"mean_source_words", static_cast<double>(source_words) / documents},
                {"mean_target_words", static_cast<double>(target_words) / documents}};
  }
};

std::string strip(std::string text) {
  const auto blank = " \t\r\n";
  text.erase(0, std::min(text.find_first_not_of(blank), text.size()));
  text.erase(text.find_last_not_of(blank) + 1);
  return text;
}

/// The sentences of a list of texts, one a line, without the <S> marks of published abstracts.
std::string sentences(const Json& record, const std::string& key, const Where& where) {
  if (!record.contains(key)) where.fail("has no \"" + key + "\"; allowed: list of sentences");
  if (!record[key].is_array())
    (where / key).fail(record[key].dump().substr(0, 40) + " is not allowed; allowed: list of sentences");
  std::string text;
  for (std::size_t i = 0; i < record[key].size(); ++i) {
    const auto& item = record[key][i];
    if (!item.is_string()) (where / key / i).fail(item.dump().substr(0, 40) + " is not allowed; allowed: text");
    auto sentence = strip(item.get<std::string>());
    if (sentence.starts_with("<S>")) sentence = sentence.substr(3);
    if (sentence.ends_with("</S>")) sentence.resize(sentence.size() - 4);
    sentence = strip(sentence);
    // A line is a sentence from here on, so a line end inside one may not stay.
    std::replace_if(
        sentence.begin(), sentence.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    if (!sentence.empty()) text += (text.empty() ? "" : "\n") + sentence;
  }
  return text;
}

/// The object of one line.
Json parse_record(const std::string& line, const Where& where) {
  try {
    auto record = Json::parse(line);
    if (!record.is_object()) where.fail("is not an object with \"article_text\" and \"abstract_text\"");
    return record;
  } catch (const Json::parse_error& error) {
    where.fail(fmt::format("is not JSON from byte {} on (a damaged line, or a file cut off)", error.byte));
  }
}

/// The record's own id, or the place of one that has none.
std::string id_of(const Json& record, const Where& where) {
  if (!record.contains("article_id") || record["article_id"].is_null())
    return std::filesystem::path(where.source()).filename().string();
  const auto& id = record["article_id"];
  if (!id.is_string() && !id.is_number_integer()) (where / "article_id").fail("is not allowed; allowed: text or integer");
  return id.is_string() ? id.get<std::string>() : id.dump();
}

struct Reader {
  Split split;
  Counts counts;
  std::set<std::string> ids;

  void take(const std::string& line, const Where& where) {
    if (strip(line).empty()) return;
    ++counts.read;
    const auto record = parse_record(line, where);
    Document document;
    document.id = id_of(record, where);
    document.source = sentences(record, "article_text", where);
    document.target = sentences(record, "abstract_text", where);
    if (document.source.empty()) return void(++counts.empty_article);
    if (document.target.empty()) return void(++counts.empty_abstract);
    if (document.source.find(document.target) != std::string::npos) ++counts.abstract_in_body;
    if (!ids.insert(document.id).second) ++counts.duplicate_id;
    ++counts.kept;
    counts.source_words += count_words(document.source);
    counts.target_words += count_words(document.target);
    split.documents.push_back(std::move(document));
  }
};

Split read_split(const std::filesystem::path& file, std::int64_t limit) {
  Reader reader;
  for_lines(file, [&](const std::string& line, std::int64_t number) {
    reader.take(line, Where(fmt::format("{}:{}", file.string(), number)));
    return reader.counts.kept < limit;
  });
  if (reader.split.documents.empty()) Where(file.string()).fail("holds no document with an article and an abstract");
  reader.split.counts = reader.counts.json();
  return reader.split;
}

std::filesystem::path split_file(const std::filesystem::path& folder, const std::vector<std::string>& names,
                                 const Where& where) {
  std::vector<std::string> tried;
  for (const auto& name : names)
    for (const auto* ending : {".jsonl", ".jsonl.xz", ".jsonl.gz", ".txt"}) {
      if (std::filesystem::exists(folder / (name + ending))) return folder / (name + ending);
      tried.push_back(name + ending);
    }
  where.fail(fmt::format("{} holds no {} split; allowed: one of {}", folder.string(), names.front(), join(tried)));
}

/// One file for all three splits: shuffled by the seed, then dealt out.
Corpus split_one_file(const std::filesystem::path& file, std::int64_t train, std::int64_t validation, std::int64_t test,
                      std::uint64_t seed, const Where& where) {
  auto all = read_split(file, train + validation + test);
  const auto have = static_cast<std::int64_t>(all.documents.size());
  if (have < 3)
    where.fail(
        fmt::format("{} holds {} usable documents; allowed: 3 or more, or a folder with three files", file.string(), have));
  Random random(seed);
  random.shuffle(all.documents);
  const auto share = static_cast<double>(have) / static_cast<double>(train + validation + test);
  const auto part = [&](std::int64_t wanted) {
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(wanted) * std::min(1.0, share)));
  };
  Corpus corpus;
  auto next = all.documents.begin();
  for (auto [split, count] :
       {std::pair{&corpus.test, part(test)}, {&corpus.validation, part(validation)}, {&corpus.train, have}}) {
    count = std::min<std::int64_t>(count, all.documents.end() - next);
    split->documents.assign(next, next + count);
    next += count;
    split->counts = all.counts;
    split->counts["kept"] = count;
  }
  return corpus;
}

Corpus load(const Options& options, std::uint64_t seed, const Where& where) {
  const std::filesystem::path path = options.text("path");
  const auto train = options.integer("train_documents");
  const auto validation = options.integer("validation_documents");
  const auto test = options.integer("test_documents");
  if (!std::filesystem::is_directory(path)) return split_one_file(path, train, validation, test, seed, where / "path");
  return {read_split(split_file(path, {"train"}, where / "path"), train),
          read_split(split_file(path, {"val", "validation"}, where / "path"), validation),
          read_split(split_file(path, {"test"}, where / "path"), test)};
}

OptionSpec limit(const std::string& name, std::int64_t fallback) {
  return {.name = name,
          .type = OptionType::integer,
          .fallback = fallback,
          .meaning = "documents read at most",
          .minimum = 1,
          .maximum = 1e9};
}

const RegisterDataset registration({
    .name = "pubmed",
    .description = "the published arXiv/PubMed format: JSON lines with article_text and abstract_text, plain, .gz or .xz",
    .options = {{.name = "path",
                 .type = OptionType::text,
                 .meaning = "folder with train, val and test files, or one file that is dealt out by the seed"},
                limit("train_documents", 1000000),
                limit("validation_documents", 100000),
                limit("test_documents", 100000)},
    .load = load,
    .default_tokenizer = "sentencepiece",
    .needs_files = true,
});

}  // namespace
}  // namespace transpool
