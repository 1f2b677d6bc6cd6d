#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>
#include "operators/error.h"

namespace transpool {

enum class OptionType { boolean, integer, real, text, choice, list, object, variant };

/// What one option (of a variant, of a level, of a data set ...) may be. Help texts, validation and defaults come from it.
struct OptionSpec {
  std::string name;
  OptionType type = OptionType::real;
  Json fallback;        ///< the default; null: the option must be given, unless `optional`
  std::string meaning;  ///< one line for `transpool list` and --help
  double minimum = -std::numeric_limits<double>::infinity();
  double maximum = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices = {};  ///< for OptionType::choice
  std::string variant_kind = {};          ///< for OptionType::variant: the registry it names, e.g. "pooling"
  bool optional = false;                  ///< may stay null
};

/// The allowed values in words: "integer, 1 or more", "one of none, gated, straight_through".
std::string allowed_values(const OptionSpec& spec);

/// The spec as `transpool list --json` shows it.
Json to_json(const OptionSpec& spec);

/// Throws UsageError at `where` unless `value` is of the spec's type and in its range. Reals accept integers.
/// Values of type `variant` are only checked to be a string or an object with a "name".
void check_option(const OptionSpec& spec, const Json& value, const Where& where);

/// A set of values that has been checked against specs and completed with their defaults.
class Options {
 public:
  Options() = default;

  /// Checks `given` (an object or null) against `specs`; `owner` is named in errors about unknown keys, for example
  /// `option of pooling operator "hard_topk"`. Throws UsageError.
  Options(const std::vector<OptionSpec>& specs, const Json& given, const std::string& owner, const Where& where);

  bool has(const std::string& name) const;  ///< known and not null
  bool flag(const std::string& name) const;
  std::int64_t integer(const std::string& name) const;
  double real(const std::string& name) const;
  std::string text(const std::string& name) const;
  const Json& raw(const std::string& name) const;

  /// All options with their values, in the order of their specs.
  const Json& json() const { return values_; }

 private:
  Json values_ = Json::object();
};

}  // namespace transpool
