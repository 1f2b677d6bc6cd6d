#include "runners/sweep/experiment.h"

#include "runners/measure/level.h"
#include "runners/sweep/expression.h"
#include "runners/sweep/settings.h"

#include <c10/util/hash.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <set>

namespace transpool {
namespace {

const std::vector<std::string> sections = {"training", "generation", "timing", "selection", "rouge"};
const std::vector<std::string> top_level_settings = {"data", "tokenizer"};

Json read_json(const std::filesystem::path& file) {
  std::ifstream stream(file);
  const Where where(file.string());
  if (!stream) where.fail("cannot be read; allowed: an experiment file");
  try {
    return Json::parse(stream, nullptr, true, /*ignore_comments=*/false);
  } catch (const Json::parse_error& error) {
    where.fail(fmt::format("is not JSON: {}", error.what()));
  }
}

void check_keys(const Json& json, const Where& where) {
  if (!json.is_object()) where.fail("is not an object");
  std::vector<std::string> known = {"name", "description", "level", "measure",  "fixed",
                                    "axes", "zip",         "where", "baseline", "seeds"};
  known.insert(known.end(), top_level_settings.begin(), top_level_settings.end());
  known.insert(known.end(), sections.begin(), sections.end());
  for (const auto& item : json.items())
    if (std::find(known.begin(), known.end(), item.key()) == known.end())
      (where / item.key()).fail(unknown_name_message("key of an experiment", item.key(), known));
}

std::vector<std::string> read_measure(const Json& json, const std::string& level, const Where& where) {
  std::vector<std::string> measure;
  const auto known = measure_names();
  const Json given = json.contains("measure") ? json["measure"] : Json({"time", "memory", "flops"});
  if (!given.is_array() || given.empty()) where.fail("is not a list of measures; known: " + join(known));
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (!given[i].is_string() ||
        std::find(known.begin(), known.end(), given[i].get_ref<const std::string&>()) == known.end())
      (where / i).fail(
          unknown_name_message("measure", given[i].is_string() ? given[i].get<std::string>() : given[i].dump(), known));
    if (given[i] == "rouge" && level != "quality") (where / i).fail("\"rouge\" is measured at level quality only");
    if (given[i] == "roofline" && level != "operator" && level != "pooling_layer")
      (where / i).fail("\"roofline\" is measured at levels operator and pooling_layer only");
    if (given[i] == "selection" && level != "operator") (where / i).fail("\"selection\" is measured at level operator only");
    measure.push_back(given[i]);
  }
  const auto asked = [&](const std::string& name) {
    return std::find(measure.begin(), measure.end(), name) != measure.end();
  };
  if (asked("roofline") && !asked("time")) where.fail("\"roofline\" is a share of the time; allowed: beside \"time\"");
  return measure;
}

/// The fixed values, from "fixed" and from the sections, by dotted key and checked.
Json read_fixed(const Json& json, const std::string& level, const Where& root) {
  Json fixed = Json::object();
  const auto take = [&](const std::string& key, const Json& value, const Where& where) {
    fixed[key] = resolve_setting(find_setting(level, key, where), value, where);
  };
  if (json.contains("fixed")) {
    if (!json["fixed"].is_object()) (root / "fixed").fail("is not an object of settings");
    for (const auto& item : json["fixed"].items()) take(item.key(), item.value(), root / "fixed" / item.key());
  }
  for (const auto& key : top_level_settings)
    if (json.contains(key)) take(key, json[key], root / key);
  for (const auto& section : sections) {
    if (!json.contains(section)) continue;
    if (!json[section].is_object()) (root / section).fail("is not an object of settings");
    for (const auto& item : json[section].items())
      take(section + "." + item.key(), item.value(), root / section / item.key());
  }
  return fixed;
}

struct Axis {
  std::string name;
  std::vector<Json> written;
  std::vector<Json> resolved;
};

std::vector<Axis> read_axes(const Json& json, const std::string& level, const Json& fixed, const Where& root) {
  std::vector<Axis> axes;
  if (!json.contains("axes")) return axes;
  const auto where = root / "axes";
  if (!json["axes"].is_object()) where.fail("is not an object of lists");
  for (const auto& item : json["axes"].items()) {
    const auto here = where / item.key();
    const auto& spec = find_setting(level, item.key(), here);
    if (fixed.contains(item.key())) here.fail(fmt::format("\"{}\" is an axis and fixed at once", item.key()));
    if (!item.value().is_array() || item.value().empty())
      here.fail(item.value().dump() + " is not allowed; allowed: list of values");
    Axis axis{item.key(), {}, {}};
    for (std::size_t i = 0; i < item.value().size(); ++i) {
      axis.written.push_back(item.value()[i]);
      axis.resolved.push_back(resolve_setting(spec, item.value()[i], here / i));
    }
    axes.push_back(std::move(axis));
  }
  return axes;
}

/// Axes that move together, as groups of axis indices; every other axis is a group of its own.
std::vector<std::vector<std::size_t>> read_groups(const Json& json, const std::vector<Axis>& axes, const Where& root) {
  std::vector<std::vector<std::size_t>> groups;
  std::vector<std::string> names;
  for (const auto& axis : axes) names.push_back(axis.name);
  std::set<std::size_t> zipped;
  if (json.contains("zip")) {
    const auto where = root / "zip";
    if (!json["zip"].is_array()) where.fail("is not a list of lists of axes");
    for (std::size_t g = 0; g < json["zip"].size(); ++g) {
      const auto& group = json["zip"][g];
      if (!group.is_array()) (where / g).fail("is not a list of axes");
      std::vector<std::size_t> members;
      for (std::size_t i = 0; i < group.size(); ++i) {
        const auto name = group[i].is_string() ? group[i].get<std::string>() : group[i].dump();
        const auto found = std::find(names.begin(), names.end(), name);
        if (found == names.end()) (where / g / i).fail(unknown_name_message("axis", name, names));
        members.push_back(static_cast<std::size_t>(found - names.begin()));
        if (!zipped.insert(members.back()).second) (where / g / i).fail("axis \"" + name + "\" is zipped twice");
        if (axes[members.back()].written.size() != axes[members.front()].written.size())
          (where / g / i)
              .fail(fmt::format("axis \"{}\" has {} values, \"{}\" has {}", name, axes[members.back()].written.size(),
                                axes[members.front()].name, axes[members.front()].written.size()));
      }
      if (!members.empty()) groups.push_back(members);
    }
  }
  for (std::size_t i = 0; i < axes.size(); ++i)
    if (!zipped.contains(i)) groups.push_back({i});
  std::sort(groups.begin(), groups.end());
  return groups;
}

std::vector<std::int64_t> read_seeds(const Json& json, const Where& root) {
  if (!json.contains("seeds")) return {0};
  std::vector<std::int64_t> seeds;
  const auto where = root / "seeds";
  if (!json["seeds"].is_array() || json["seeds"].empty()) where.fail("is not a list of integers");
  for (std::size_t i = 0; i < json["seeds"].size(); ++i) {
    const auto& seed = json["seeds"][i];
    if (!seed.is_number_integer() || seed.get<std::int64_t>() < 0)
      (where / i).fail(seed.dump() + " is not allowed; allowed: integer, 0 or more");
    if (std::find(seeds.begin(), seeds.end(), seed.get<std::int64_t>()) != seeds.end())
      (where / i).fail(seed.dump() + " stands there twice");
    seeds.push_back(seed);
  }
  return seeds;
}

std::vector<Expression> read_conditions(const Json& json, const Where& root) {
  std::vector<Expression> conditions;
  if (!json.contains("where")) return conditions;
  const auto where = root / "where";
  if (!json["where"].is_array()) where.fail("is not a list of expressions");
  for (std::size_t i = 0; i < json["where"].size(); ++i) {
    if (!json["where"][i].is_string())
      (where / i).fail(json["where"][i].dump() + " is not allowed; allowed: expression as text");
    conditions.emplace_back(json["where"][i].get<std::string>(), where / i);
  }
  return conditions;
}

std::string identity(const Cell& cell) {
  Json full = {{"level", cell.level}, {"device", cell.device}, {"seed", cell.seed}, {"values", cell.values.json()}};
  auto measure = cell.measure;
  std::sort(measure.begin(), measure.end());
  // How selection would be measured tells no cells apart that do not measure it.
  if (!std::binary_search(measure.begin(), measure.end(), "selection"))
    for (const auto& item : cell.values.json().items())
      if (item.key().starts_with("selection.")) full["values"].erase(item.key());
  // Nor does an option that is younger than records, where it is off.
  if (!cell.values.json().value("timing.graph", true)) full["values"].erase("timing.graph");
  if (!cell.values.has("backend")) full["values"].erase("backend");
  full["measure"] = measure;
  // Sorted keys, so that the order in which an experiment writes them does not matter.
  return c10::sha1(nlohmann::json::parse(full.dump()).dump()).str().substr(0, 16);
}

/// Every combination of the groups' positions, the last group fastest.
std::vector<std::vector<std::size_t>> combinations(const std::vector<std::size_t>& sizes) {
  std::vector<std::vector<std::size_t>> all = {{}};
  for (const auto size : sizes) {
    std::vector<std::vector<std::size_t>> longer;
    for (const auto& head : all)
      for (std::size_t i = 0; i < size; ++i) {
        longer.push_back(head);
        longer.back().push_back(i);
      }
    all = std::move(longer);
  }
  return all;
}

/// Ids of the cells that share everything with a cell but stand at the baseline's values.
void link_baselines(std::vector<Cell>& cells, const Json& baseline) {
  if (baseline.empty()) return;
  for (auto& cell : cells) {
    Json wanted = cell.axes;
    wanted.update(baseline);
    for (const auto& other : cells)
      if (other.axes == wanted && other.seed == cell.seed && other.id != cell.id) cell.baseline = other.id;
  }
}

Json read_baseline(const Json& json, const std::vector<Axis>& axes, const Where& root) {
  if (!json.contains("baseline")) return Json::object();
  const auto where = root / "baseline";
  if (!json["baseline"].is_object()) where.fail("is not an object of axes and values");
  std::vector<std::string> names;
  for (const auto& axis : axes) names.push_back(axis.name);
  for (const auto& item : json["baseline"].items()) {
    const auto found = std::find(names.begin(), names.end(), item.key());
    if (found == names.end()) (where / item.key()).fail(unknown_name_message("axis", item.key(), names));
    const auto& axis = axes[static_cast<std::size_t>(found - names.begin())];
    if (std::find(axis.written.begin(), axis.written.end(), item.value()) == axis.written.end())
      (where / item.key())
          .fail(item.value().dump() + " is not allowed; allowed: one of the axis's values, " + Json(axis.written).dump());
  }
  return json["baseline"];
}

/// Says where the setting that a level's check named first was written: on an axis, under fixed, or nowhere.
[[noreturn]] void refuse_cell(const Cell& cell, const std::string& message, const std::vector<Axis>& axes, const Json& fixed,
                              const Where& root) {
  const auto setting = message.substr(0, message.find(": "));
  const auto text = message.substr(std::min(message.size(), setting.size() + 2));
  const auto of_cell = cell.axes.empty() ? "" : " (cell " + cell.axes.dump() + ")";
  for (const auto& axis : axes) {
    if (axis.name != setting) continue;
    const auto found = std::find(axis.written.begin(), axis.written.end(), cell.axes[axis.name]);
    (root / "axes" / axis.name / static_cast<std::size_t>(found - axis.written.begin())).fail(text + of_cell);
  }
  if (fixed.contains(setting)) (root / "fixed" / setting).fail(text + of_cell);
  if (cell.values.has(setting)) (root / "fixed" / setting).fail("the default " + text + of_cell);
  (root / "axes").fail(message + of_cell);
}

}  // namespace

Json to_json(const Cell& cell) {
  return Json{{"id", cell.id},     {"level", cell.level}, {"measure", cell.measure},      {"device", cell.device},
              {"axes", cell.axes}, {"seed", cell.seed},   {"values", cell.values.json()}, {"baseline", cell.baseline}};
}

Cell cell_from_json(const Json& json) {
  Cell cell;
  cell.id = json.at("id");
  cell.level = json.at("level");
  cell.measure = json.at("measure").get<std::vector<std::string>>();
  cell.device = json.at("device");
  cell.axes = json.at("axes");
  cell.seed = json.at("seed");
  cell.values = Options(settings_of(cell.level), json.at("values"), "setting", Where("cell"));
  cell.baseline = json.at("baseline");
  return cell;
}

Experiment read_experiment(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                           const std::string& device) {
  Json json = read_json(file);
  for (const auto& assignment : overrides) apply_override(json, assignment);
  return experiment_from_json(json, file.string(), device);
}

Experiment experiment_from_json(const Json& json, const std::string& source, const std::string& device) {
  const Where root(source);
  check_keys(json, root);
  Experiment experiment;
  for (const auto* key : {"name", "level"})
    if (!json.contains(key) || !json[key].is_string()) (root / key).fail("missing, or not text");
  experiment.name = json["name"];
  experiment.level = json["level"];
  const auto specs = settings_of(experiment.level, root / "level");
  const auto measure = read_measure(json, experiment.level, root / "measure");
  const auto fixed = read_fixed(json, experiment.level, root);
  const auto axes = read_axes(json, experiment.level, fixed, root);
  const auto groups = read_groups(json, axes, root);
  const auto conditions = read_conditions(json, root);
  const auto baseline = read_baseline(json, axes, root);
  const auto seeds = read_seeds(json, root);
  for (const auto& condition : conditions)
    condition.holds([&](const std::string& key) {
      const auto& spec = find_setting(experiment.level, key, root / "where");
      return spec.type == OptionType::integer || spec.type == OptionType::real ? Json(1)
             : spec.type == OptionType::boolean                                ? Json(true)
                                                                               : Json("");
    });

  std::vector<std::size_t> sizes;
  for (const auto& group : groups) sizes.push_back(axes[group.front()].written.size());
  for (const auto& combination : combinations(sizes)) {
    Cell cell;
    Json values = fixed;
    for (std::size_t g = 0; g < groups.size(); ++g)
      for (const auto a : groups[g]) {
        cell.axes[axes[a].name] = axes[a].written[combination[g]];
        values[axes[a].name] = axes[a].resolved[combination[g]];
      }
    for (const auto& spec : specs)
      if (spec.type == OptionType::variant && !values.contains(spec.name) && !spec.fallback.is_null())
        values[spec.name] = resolve_setting(spec, spec.fallback, root / spec.name);
    cell.level = experiment.level;
    cell.measure = measure;
    cell.device = device;
    cell.values = Options(specs, values, "setting of level " + experiment.level, root);
    const bool kept = std::all_of(conditions.begin(), conditions.end(), [&](const Expression& condition) {
      return condition.holds([&](const std::string& key) { return cell.values.raw(key); });
    });
    if (!kept) {
      experiment.left_out.push_back(cell.axes.dump());
      continue;
    }
    try {
      find_level(cell.level).check(cell, Where());
    } catch (const Unsupported& unsupported) {
      cell.skip_reason = unsupported.what();
    } catch (const UsageError& error) {
      refuse_cell(cell, error.what(), axes, fixed, root);
    }
    for (const auto seed : seeds) {
      cell.seed = seed;
      cell.id = identity(cell);
      experiment.cells.push_back(cell);
    }
  }
  if (experiment.cells.empty()) (root / "where").fail("removes every cell; allowed: conditions that leave at least one");
  std::set<std::string> ids;
  for (const auto& cell : experiment.cells)
    if (!ids.insert(cell.id).second) (root / "axes").fail(fmt::format("the cell {} is there twice", cell.axes.dump()));
  link_baselines(experiment.cells, baseline);
  experiment.resolved = json;
  experiment.resolved["device"] = device;
  return experiment;
}

namespace {

Json parse_value(const std::string& text) {
  auto value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(text) : value;
}

/// "1024:8192*2" or "1:10+3" -> the values; nothing where the text is no range.
std::vector<Json> parse_range(const std::string& text) {
  long long from = 0, to = 0, step = 0;
  char kind = 0, rest = 0;
  if (std::sscanf(text.c_str(), "%lld:%lld%c%lld%c", &from, &to, &kind, &step, &rest) != 4 || (kind != '*' && kind != '+'))
    return {};
  if ((kind == '*' && (step < 2 || from < 1)) || step < 1)
    throw UsageError("--set: range " + text + " never ends; allowed: from:to*factor (2 or more), from:to+step");
  std::vector<Json> values;
  for (long long value = from; value <= to; value = kind == '*' ? value * step : value + step) values.emplace_back(value);
  return values;
}

/// Commas split a list, but not inside brackets or quotes.
std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  bool quoted = false;
  for (const char c : text) {
    if (c == '"') quoted = !quoted;
    if (!quoted && (c == '{' || c == '[')) ++depth;
    if (!quoted && (c == '}' || c == ']')) --depth;
    if (c == ',' && depth == 0 && !quoted) parts.emplace_back();
    else parts.back() += c;
  }
  return parts;
}

}  // namespace

void apply_override(Json& experiment, const std::string& assignment) {
  const auto equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    throw UsageError("--set: \"" + assignment + "\" is not allowed; allowed: PATH=VALUE, for example fixed.batch=4");
  std::string path = assignment.substr(0, equals);
  const auto text = assignment.substr(equals + 1);
  Json value;
  std::vector<std::string> keys;
  if (path.starts_with("axes.")) {
    keys = {"axes", path.substr(5)};
    value = Json::array();
    for (const auto& part : split_list(text)) {
      const auto range = parse_range(part);
      if (range.empty()) value.push_back(parse_value(part));
      for (const auto& each : range) value.push_back(each);
    }
    if (text.starts_with('[')) value = parse_value(text);
  } else {
    std::size_t start = 0;
    for (auto dot = path.find('.'); dot != std::string::npos; dot = path.find('.', start)) {
      keys.push_back(path.substr(start, dot - start));
      start = dot + 1;
    }
    keys.push_back(path.substr(start));
    value = parse_value(text);
  }
  Json* place = &experiment;
  for (std::size_t i = 0; i + 1 < keys.size(); ++i) {
    place = &(*place)[keys[i]];
    if (place->is_string()) *place = Json{{"name", place->get<std::string>()}};
    if (!place->is_object() && !place->is_null())
      throw UsageError("--set: " + path + ": \"" + keys[i] + "\" is no object of the experiment");
  }
  (*place)[keys.back()] = value;
}

}  // namespace transpool
