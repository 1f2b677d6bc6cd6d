#pragma once

#include "operators/error.h"
#include "operators/options.h"

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace transpool {

/// Entries by name, for parts that register themselves. `Entry` has a `name` and its `options`.
template <class Entry>
class NamedEntries {
 public:
  /// `noun` names the kind in messages: "data set".
  explicit NamedEntries(std::string noun) : noun_(std::move(noun)) {}

  /// Throws std::logic_error where the name is taken: two files registered it.
  void add(Entry entry) {
    const std::string name = entry.name;
    if (!entries_.emplace(name, std::move(entry)).second)
      throw std::logic_error(noun_ + " \"" + name + "\" is registered twice");
  }

  const std::map<std::string, Entry>& all() const { return entries_; }

  /// Throws UsageError with the nearest name.
  const Entry& find(const std::string& name, const Where& where) const {
    const auto found = entries_.find(name);
    if (found != entries_.end()) return found->second;
    std::vector<std::string> known;
    for (const auto& item : entries_) known.push_back(item.first);
    where.fail(unknown_name_message(noun_, name, known));
  }

  /// Splits a value of a configuration (a name, or an object with a "name" and options) into its entry and checked options.
  std::pair<const Entry*, Options> select(const Json& value, const Where& where) const {
    const bool is_object = value.is_object() && value.contains("name") && value["name"].is_string();
    if (!value.is_string() && !is_object)
      where.fail(value.dump() + " is not a " + noun_ + "; allowed: a name, or an object with a \"name\" and options");
    Json given = Json::object();
    if (is_object)
      for (const auto& item : value.items())
        if (item.key() != "name") given[item.key()] = item.value();
    const auto name = is_object ? value["name"].template get<std::string>() : value.template get<std::string>();
    const Entry& entry = find(name, is_object ? where / "name" : where);
    return {&entry, Options(entry.options, given, "option of " + noun_ + " \"" + name + "\"", where)};
  }

 private:
  std::string noun_;
  std::map<std::string, Entry> entries_;
};

}  // namespace transpool
