#pragma once

#include "operators/options.h"

namespace transpool {

/// A value that cells may have, by its dotted key, and the levels that read it.
struct Setting {
  OptionSpec spec;
  std::vector<std::string> levels;  ///< empty: every level
};

const std::vector<Setting>& settings();

/// The specs a level reads. Throws UsageError for a level that is not known.
std::vector<OptionSpec> settings_of(const std::string& level, const Where& where = {});

/// The spec of one key at a level. An unknown key, or one that this level does not read, is a UsageError at `where`.
const OptionSpec& find_setting(const std::string& level, const std::string& key, const Where& where);

/// Checks one value against its spec; a variant, a data set or a tokenizer comes back with every option filled in.
Json resolve_setting(const OptionSpec& spec, const Json& value, const Where& where);

std::vector<std::string> level_names();

/// What may stand in "measure".
std::vector<std::string> measure_names();

}  // namespace transpool
