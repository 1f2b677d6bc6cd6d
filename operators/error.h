#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace transpool {

/// JSON with keys in the order they were written, which is the order users see again in tables and reports.
using Json = nlohmann::ordered_json;

/// The call, a file or a value is wrong: the program ends with exit code 2 and has written nothing.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A combination that is well formed but cannot run (a device, dtype or size a variant lacks): status `unsupported`.
class Unsupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Where a value was read: a source (a file or a command-line flag) and a JSON pointer inside it. Leads every message.
class Where {
 public:
  Where() = default;
  explicit Where(std::string source, std::string pointer = "");

  Where operator/(std::string_view key) const;
  Where operator/(std::size_t index) const;

  const std::string& source() const { return source_; }
  const std::string& pointer() const { return pointer_; }

  /// "experiments/x.json: /axes/pooling/2: ", or the parts of it that are known.
  std::string prefix() const;

  /// Throws UsageError with the prefix before `message`.
  [[noreturn]] void fail(const std::string& message) const;

 private:
  std::string source_;
  std::string pointer_;
};

/// The candidate within a third of the name's length in edits (at least 1), or "" where none is that near.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// `unknown KIND "NAME"; did you mean "X"? known: a, b, c` (the question only where a name is near).
std::string unknown_name_message(std::string_view kind, std::string_view name, const std::vector<std::string>& known);

/// "a, b, c"
std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

}  // namespace transpool
