#include "operators/options.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

std::string type_name(OptionType type) {
  switch (type) {
    case OptionType::boolean: return "true or false";
    case OptionType::integer: return "integer";
    case OptionType::real: return "number";
    case OptionType::text: return "text";
    case OptionType::choice: return "choice";
    case OptionType::list: return "list";
    case OptionType::object: return "object";
    case OptionType::variant: return "name, or an object with a \"name\"";
  }
  return "value";
}

bool has_type(OptionType type, const Json& value) {
  switch (type) {
    case OptionType::boolean: return value.is_boolean();
    case OptionType::integer:
      if (value.is_number_unsigned()) return value.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max();
      return value.is_number_integer() || (value.is_number_float() && std::abs(value.get<double>()) < 9e15 &&
                                           std::floor(value.get<double>()) == value.get<double>());
    case OptionType::real: return value.is_number();
    case OptionType::text:
    case OptionType::choice: return value.is_string();
    case OptionType::list: return value.is_array();
    case OptionType::object: return value.is_object();
    case OptionType::variant:
      return value.is_string() || (value.is_object() && value.contains("name") && value["name"].is_string());
  }
  return false;
}

}  // namespace

std::string allowed_values(const OptionSpec& spec) {
  if (spec.type == OptionType::choice) return "one of " + join(spec.choices);
  std::string text = type_name(spec.type);
  const bool low = std::isfinite(spec.minimum);
  const bool high = std::isfinite(spec.maximum);
  if (low && high) text += fmt::format(" from {} to {}", spec.minimum, spec.maximum);
  else if (low) text += fmt::format(", {} or more", spec.minimum);
  else if (high) text += fmt::format(", {} or less", spec.maximum);
  return text;
}

Json to_json(const OptionSpec& spec) {
  return Json{{"name", spec.name},
              {"allowed", allowed_values(spec)},
              {"default", spec.fallback},
              {"optional", spec.optional},
              {"meaning", spec.meaning}};
}

void check_option(const OptionSpec& spec, const Json& value, const Where& where) {
  if (value.is_null() && spec.optional) return;
  if (!has_type(spec.type, value))
    where.fail(fmt::format("{} is not allowed; allowed: {}", value.dump(), allowed_values(spec)));
  if (spec.type == OptionType::choice &&
      std::find(spec.choices.begin(), spec.choices.end(), value.get_ref<const std::string&>()) == spec.choices.end())
    where.fail(unknown_name_message("value of " + spec.name, value.get<std::string>(), spec.choices));
  if (!value.is_number()) return;
  const auto number = value.get<double>();
  if (!(number >= spec.minimum && number <= spec.maximum))
    where.fail(fmt::format("{} is out of range; allowed: {}", value.dump(), allowed_values(spec)));
}

Options::Options(const std::vector<OptionSpec>& specs, const Json& given, const std::string& owner, const Where& where) {
  if (!given.is_null() && !given.is_object())
    where.fail(fmt::format("{} is not allowed; allowed: object of options", given.dump()));
  std::vector<std::string> known;
  for (const auto& spec : specs) known.push_back(spec.name);
  for (const auto& item : given.items())
    if (std::find(known.begin(), known.end(), item.key()) == known.end())
      (where / item.key()).fail(unknown_name_message(owner, item.key(), known));
  for (const auto& spec : specs) {
    const bool is_given = given.is_object() && given.contains(spec.name);
    if (!is_given && spec.fallback.is_null() && !spec.optional)
      where.fail(fmt::format("missing {} \"{}\"; allowed: {}", owner, spec.name, allowed_values(spec)));
    Json value = is_given ? given[spec.name] : spec.fallback;
    if (is_given) check_option(spec, value, where / spec.name);
    if (spec.type == OptionType::integer && value.is_number_float()) value = static_cast<std::int64_t>(value.get<double>());
    if (spec.type == OptionType::real && value.is_number()) value = value.get<double>();
    values_[spec.name] = value;
  }
}

bool Options::has(const std::string& name) const { return values_.contains(name) && !values_[name].is_null(); }

const Json& Options::raw(const std::string& name) const {
  if (!values_.contains(name)) throw std::logic_error("option \"" + name + "\" was never declared");
  return values_.at(name);
}

bool Options::flag(const std::string& name) const { return raw(name).get<bool>(); }
std::int64_t Options::integer(const std::string& name) const { return raw(name).get<std::int64_t>(); }
double Options::real(const std::string& name) const { return raw(name).get<double>(); }
std::string Options::text(const std::string& name) const { return raw(name).get<std::string>(); }

}  // namespace transpool
