#include "runners/report/record.h"

#include "runners/report/fields.h"

#include <algorithm>
#include <array>
#include <limits>

namespace transpool {
namespace {

constexpr std::array<std::pair<Status, const char*>, 8> status_names{{{Status::ok, "ok"},
                                                                      {Status::oom, "oom"},
                                                                      {Status::timeout, "timeout"},
                                                                      {Status::crashed, "crashed"},
                                                                      {Status::failed, "failed"},
                                                                      {Status::incorrect, "incorrect"},
                                                                      {Status::unsupported, "unsupported"},
                                                                      {Status::skipped, "skipped"}}};

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// A reason may quote the last words of a worker that crashed, which need not be UTF-8; as JSON text it must be.
std::string valid_utf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

Status status_at(const std::string& text, const Where& where) {
  std::vector<std::string> known;
  for (const auto& [status, name] : status_names) {
    if (text == name) return status;
    known.emplace_back(name);
  }
  where.fail(unknown_name_message("status", text, known));
}

std::vector<Summary> summaries_at(const Json& json, const Where& where) {
  if (!json.is_array()) where.fail("must be a list of summaries");
  std::vector<Summary> summaries;
  for (std::size_t i = 0; i < json.size(); ++i) {
    summaries.push_back(summary_from_json(json[i], where / i));
    for (std::size_t j = 0; j < i; ++j)
      if (summaries[j].name == summaries[i].name)
        (where / i).fail("the name \"" + summaries[i].name + "\" is taken by summary " + std::to_string(j));
  }
  return summaries;
}

}  // namespace

std::string to_string(Status status) {
  for (const auto& [known, name] : status_names)
    if (known == status) return name;
  return "failed";
}

Status status_from_string(const std::string& text) { return status_at(text, {}); }

Json to_json(const Summary& summary) {
  Json json = Json::object();
  json["name"] = summary.name;
  json["unit"] = summary.unit;
  json["value"] = finite_or_null(summary.value);
  json["statistic"] = summary.statistic;
  json["higher_is_better"] = summary.higher_is_better;
  json["interval"] = nullptr;
  if (summary.interval)
    json["interval"] = Json::array({finite_or_null(summary.interval->first), finite_or_null(summary.interval->second)});
  json["samples"] = Json::array();
  for (const double sample : summary.samples) json["samples"].push_back(finite_or_null(sample));
  json["meaning"] = summary.meaning;
  return json;
}

Summary summary_from_json(const Json& json, const Where& where) {
  const Fields fields(json, where,
                      {"name", "unit", "value", "statistic", "higher_is_better", "interval", "samples", "meaning"});
  for (const auto* key : {"name", "value"}) fields.required(key);
  Summary summary;
  summary.name = fields.text("name");
  if (summary.name.empty()) fields.at("name").fail("must not be empty");
  summary.unit = fields.text("unit");
  summary.value = fields.number("value", not_a_number);
  summary.statistic = fields.text("statistic", "value");
  summary.higher_is_better = fields.flag("higher_is_better", false);
  if (const auto ends = fields.numbers("interval"); !ends.empty()) {
    if (ends.size() != 2) fields.at("interval").fail("must be [low, high] or null");
    if (ends[0] > ends[1]) fields.at("interval").fail("its low end is above its high end");
    summary.interval = {ends[0], ends[1]};
  }
  summary.samples = fields.numbers("samples");
  summary.meaning = fields.text("meaning");
  return summary;
}

Json to_json(const Record& record) {
  Json json = Json::object();
  json["id"] = record.id;
  json["axes"] = record.axes;
  json["seed"] = record.seed;
  json["configuration"] = record.configuration;
  json["status"] = to_string(record.status);
  json["reason"] = valid_utf8(record.reason);
  json["baseline"] = record.baseline;
  json["environment"] = record.environment;
  json["started"] = record.started;
  json["seconds"] = finite_or_null(record.seconds);
  json["summaries"] = Json::array();
  for (const auto& summary : record.summaries) json["summaries"].push_back(to_json(summary));
  json["details"] = record.details;
  return json;
}

Record record_from_json(const Json& json, const Where& where) {
  const Fields fields(json, where,
                      {"id", "axes", "seed", "configuration", "status", "reason", "baseline", "environment", "started",
                       "seconds", "summaries", "details"});
  for (const auto* key : {"id", "axes", "status", "reason", "summaries"}) fields.required(key);
  Record record;
  record.id = fields.text("id");
  if (record.id.empty()) fields.at("id").fail("must not be empty");
  record.axes = fields.object("axes");
  record.seed = fields.integer("seed", 0);
  record.configuration = fields.object("configuration");
  record.status = status_at(fields.text("status"), fields.at("status"));
  record.reason = fields.text("reason");
  if (record.status != Status::ok && record.reason.empty())
    fields.at("reason").fail("must say why the status is " + to_string(record.status));
  record.baseline = fields.text("baseline");
  record.environment = fields.text("environment");
  record.started = fields.text("started");
  record.seconds = fields.number("seconds", 0);
  record.summaries = summaries_at(fields.required("summaries"), fields.at("summaries"));
  record.details = fields.object("details");
  return record;
}

const Summary* find_summary(const Record& record, const std::string& name) {
  const auto found = std::find_if(record.summaries.begin(), record.summaries.end(),
                                  [&](const Summary& summary) { return summary.name == name; });
  return found == record.summaries.end() ? nullptr : &*found;
}

}  // namespace transpool
