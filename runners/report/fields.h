#pragma once

#include "operators/error.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace transpool {

/// Reads the keys of one JSON object. Every complaint is a UsageError that names the file, the JSON pointer and, for an
/// unknown key, the nearest known one.
class Fields {
 public:
  /// `known` are all keys the object may have.
  Fields(const Json& object, const Where& where, const std::vector<std::string>& known);

  bool has(const std::string& key) const { return object_.contains(key); }
  const Json& required(const std::string& key) const;

  /// The values of keys that may be left out; `fallback` where they are.
  std::string text(const std::string& key, const std::string& fallback = {}) const;
  double number(const std::string& key, double fallback) const;  ///< null reads as NaN
  std::int64_t integer(const std::string& key, std::int64_t fallback) const;
  bool flag(const std::string& key, bool fallback) const;
  Json object(const std::string& key) const;                  ///< an empty object where the key is left out
  std::vector<double> numbers(const std::string& key) const;  ///< an empty list where the key is left out or null

  Where at(const std::string& key) const { return where_ / std::string_view(key); }

 private:
  const Json& object_;
  Where where_;
};

/// A JSON number, or null for a value that JSON cannot hold (NaN, infinity).
Json finite_or_null(double value);

/// The reverse: null is NaN. Throws UsageError for anything else that is no number.
double number_from_json(const Json& json, const Where& where);

/// Pretty text: objects indented by two, a list of plain values on one line, so that a hundred samples are one line of a
/// diff. Bytes that are no UTF-8 (a crashed worker's last words) are replaced.
std::string pretty(const Json& json);

}  // namespace transpool
