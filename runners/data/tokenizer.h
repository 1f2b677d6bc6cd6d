#pragma once

#include "operators/options.h"
#include "runners/data/document.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace transpool {

/// Text to token ids and back. Newlines survive the way there and back, other white space becomes single spaces.
class Tokenizer {
 public:
  static constexpr std::int32_t pad = 0;
  static constexpr std::int32_t bos = 1;
  static constexpr std::int32_t eos = 2;
  static constexpr std::int32_t unknown = 3;
  static constexpr std::int32_t specials = 4;  ///< the first id that is no special one

  /// What `unknown` decodes to: a sign that ROUGE does not count as a word.
  static constexpr std::string_view unknown_text = "\u2047";

  virtual ~Tokenizer() = default;

  /// Ids without bos and eos.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;

  /// Leaves out pad, bos and eos. Throws std::out_of_range on an id that is not in [0, size()).
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;

  /// One more than the highest id, specials included.
  virtual std::int64_t size() const = 0;

  /// Writes all that load_tokenizer() needs into `folder`, which is made where it is missing.
  virtual void save(const std::filesystem::path& folder) const = 0;
};

/// A kind of tokenizer. A new one is one new file with a RegisterTokenizer at its end, and no other edit.
struct TokenizerEntry {
  std::string name;
  std::string description;  ///< one line
  std::vector<OptionSpec> options;
  /// Makes one from training documents (sources and targets), the same one for the same documents and seed.
  std::function<std::unique_ptr<Tokenizer>(const Options&, const Split& training, std::uint64_t seed, const Where&)> build;
  /// Reads back what save() wrote. `description` is the parsed tokenizer.json, `where` its place.
  std::function<std::unique_ptr<Tokenizer>(const std::filesystem::path& folder, const Json& description, const Where&)> load;
};

class RegisterTokenizer {
 public:
  explicit RegisterTokenizer(TokenizerEntry entry);
};

/// All kinds of tokenizers by name.
const std::map<std::string, TokenizerEntry>& tokenizers();

/// Throws UsageError with the nearest name.
const TokenizerEntry& find_tokenizer(const std::string& name, const Where& where);

/// The tokenizer and checked options of a configuration value: a name, or an object with a "name" and options.
std::pair<const TokenizerEntry*, Options> select_tokenizer(const Json& value, const Where& where);

/// Reads what Tokenizer::save wrote. Throws UsageError.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder);

/// For save(): writes `folder`/tokenizer.json, `description` being the members beside the kind's name.
void write_tokenizer_description(const std::filesystem::path& folder, const std::string& kind, const Json& description);

}  // namespace transpool
