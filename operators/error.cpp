#include "operators/error.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace transpool {

Where::Where(std::string source, std::string pointer) : source_(std::move(source)), pointer_(std::move(pointer)) {}

Where Where::operator/(std::string_view key) const { return Where(source_, pointer_ + "/" + std::string(key)); }

Where Where::operator/(std::size_t index) const { return *this / std::to_string(index); }

std::string Where::prefix() const {
  std::string text = source_.empty() ? "" : source_ + ": ";
  return pointer_.empty() ? text : text + pointer_ + ": ";
}

void Where::fail(const std::string& message) const { throw UsageError(prefix() + message); }

namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  std::size_t best = std::max<std::size_t>(1, name.size() / 3) + 1;
  std::string nearest;
  for (const auto& candidate : candidates) {
    const auto distance = edit_distance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string unknown_name_message(std::string_view kind, std::string_view name, const std::vector<std::string>& known) {
  std::string text = "unknown " + std::string(kind) + " \"" + std::string(name) + "\"";
  if (const auto near = nearest_name(name, known); !near.empty()) text += "; did you mean \"" + near + "\"?";
  else text += ";";
  return text + " known: " + (known.empty() ? "none" : join(known));
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string text;
  for (const auto& part : parts) {
    if (!text.empty()) text += separator;
    text += part;
  }
  return text;
}

}  // namespace transpool
