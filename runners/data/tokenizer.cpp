#include "runners/data/tokenizer.h"

#include "runners/data/named_entries.h"
#include "runners/report/report.h"

#include <fstream>

namespace transpool {
namespace {

NamedEntries<TokenizerEntry>& entries() {
  static NamedEntries<TokenizerEntry> all("tokenizer");
  return all;
}

}  // namespace

RegisterTokenizer::RegisterTokenizer(TokenizerEntry entry) { entries().add(std::move(entry)); }

const std::map<std::string, TokenizerEntry>& tokenizers() { return entries().all(); }

const TokenizerEntry& find_tokenizer(const std::string& name, const Where& where) { return entries().find(name, where); }

std::pair<const TokenizerEntry*, Options> select_tokenizer(const Json& value, const Where& where) {
  return entries().select(value, where);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
  const auto path = folder / "tokenizer.json";
  const Where where(path.string());
  std::ifstream file(path);
  if (!file) where.fail("cannot be read; allowed: a folder that a tokenizer was saved in");
  const auto json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object() || !json.contains("name") || !json["name"].is_string())
    where.fail("is not a tokenizer's description");
  return find_tokenizer(json["name"], where / "name").load(folder, json, where);
}

void write_tokenizer_description(const std::filesystem::path& folder, const std::string& kind, const Json& description) {
  std::filesystem::create_directories(folder);
  Json json = {{"name", kind}};
  json.update(description);
  write_atomically(folder / "tokenizer.json", json.dump(1) + "\n");
}

}  // namespace transpool
