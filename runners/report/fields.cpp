#include "runners/report/fields.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace transpool {
namespace {

[[noreturn]] void wrong_type(const Where& where, const std::string& wanted, const Json& got) {
  auto shown = got.dump(-1, ' ', false, Json::error_handler_t::replace);
  // Where the quote is cut must be no continuation byte, or the message would not be UTF-8.
  std::size_t end = std::min<std::size_t>(shown.size(), 60);
  while (end > 0 && end < shown.size() && (static_cast<unsigned char>(shown[end]) & 0xC0U) == 0x80U) --end;
  if (end < shown.size()) shown = shown.substr(0, end) + "...";
  where.fail("must be " + wanted + ", not " + shown);
}

std::string plain(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string one_line(const Json& list) {
  std::string text = "[";
  for (const auto& item : list) text += (text.size() > 1 ? ", " : "") + plain(item);
  return text + "]";
}

void append_pretty(std::string& text, const Json& json, std::size_t depth) {
  const bool plain_list =
      json.is_array() && std::none_of(json.begin(), json.end(), [](const Json& item) { return item.is_structured(); });
  if (!json.is_structured() || json.empty()) {
    text += plain(json);
    return;
  }
  if (plain_list) {
    text += one_line(json);
    return;
  }
  const std::string indent(2 * (depth + 1), ' ');
  text += json.is_object() ? "{" : "[";
  bool first = true;
  for (const auto& [key, value] : json.items()) {
    text += (first ? "\n" : ",\n") + indent;
    if (json.is_object()) text += plain(Json(key)) + ": ";
    append_pretty(text, value, depth + 1);
    first = false;
  }
  text += "\n" + std::string(2 * depth, ' ') + (json.is_object() ? "}" : "]");
}

}  // namespace

Fields::Fields(const Json& object, const Where& where, const std::vector<std::string>& known)
    : object_(object), where_(where) {
  if (!object.is_object()) wrong_type(where, "an object", object);
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      (where / std::string_view(key)).fail(unknown_name_message("key", key, known));
}

const Json& Fields::required(const std::string& key) const {
  if (!has(key)) {
    std::vector<std::string> present;
    for (const auto& item : object_.items()) present.push_back(item.key());
    const auto near = nearest_name(key, present);
    where_.fail("lacks the key \"" + key + "\"" + (near.empty() ? "" : " (it has \"" + near + "\")"));
  }
  return object_[key];
}

std::string Fields::text(const std::string& key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!object_[key].is_string()) wrong_type(at(key), "a text", object_[key]);
  return object_[key].get<std::string>();
}

double Fields::number(const std::string& key, double fallback) const {
  return has(key) ? number_from_json(object_[key], at(key)) : fallback;
}

std::int64_t Fields::integer(const std::string& key, std::int64_t fallback) const {
  if (!has(key)) return fallback;
  if (!object_[key].is_number_integer()) wrong_type(at(key), "an integer", object_[key]);
  return object_[key].get<std::int64_t>();
}

bool Fields::flag(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!object_[key].is_boolean()) wrong_type(at(key), "true or false", object_[key]);
  return object_[key].get<bool>();
}

Json Fields::object(const std::string& key) const {
  if (!has(key)) return Json::object();
  if (!object_[key].is_object()) wrong_type(at(key), "an object", object_[key]);
  return object_[key];
}

std::vector<double> Fields::numbers(const std::string& key) const {
  if (!has(key) || object_[key].is_null()) return {};
  if (!object_[key].is_array()) wrong_type(at(key), "a list of numbers", object_[key]);
  std::vector<double> values;
  for (std::size_t i = 0; i < object_[key].size(); ++i) values.push_back(number_from_json(object_[key][i], at(key) / i));
  return values;
}

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

double number_from_json(const Json& json, const Where& where) {
  if (json.is_null()) return std::numeric_limits<double>::quiet_NaN();
  if (!json.is_number()) wrong_type(where, "a number (or null for one that is not finite)", json);
  return json.get<double>();
}

std::string pretty(const Json& json) {
  std::string text;
  append_pretty(text, json, 0);
  return text + "\n";
}

}  // namespace transpool
