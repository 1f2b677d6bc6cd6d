#pragma once

#include "operators/options.h"
#include "runners/data/document.h"

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace transpool {

/// A source of documents. A new one is one new file with a RegisterDataset at its end, and no other edit.
struct DatasetEntry {
  std::string name;
  std::string description;  ///< one line
  std::vector<OptionSpec> options;
  /// `where` is the place of the data set's own object, so that an error about a value leads with `where / "option"`.
  std::function<Corpus(const Options&, std::uint64_t seed, const Where&)> load;
  std::string default_tokenizer;
  bool needs_files = false;  ///< reads files of the user's; false: generated
};

class RegisterDataset {
 public:
  explicit RegisterDataset(DatasetEntry entry);
};

/// All data sets by name.
const std::map<std::string, DatasetEntry>& datasets();

/// Throws UsageError with the nearest name.
const DatasetEntry& find_dataset(const std::string& name, const Where& where);

/// The data set and checked options of a configuration value: a name, or an object with a "name" and options.
std::pair<const DatasetEntry*, Options> select_dataset(const Json& value, const Where& where);

}  // namespace transpool
