#include "runners/sweep/rerun.h"

namespace transpool {

Experiment rerun_experiment(const Report& report, const Record& record, const std::string& source) {
  const Where where(source, "/records/" + record.id + "/configuration");
  for (const auto* key : {"level", "device"})
    if (!record.configuration.contains(key) || !record.configuration[key].is_string())
      (where / key).fail("missing: the record does not say what was measured");
  Json json = {{"name", report.experiment.value("name", "record") + "-" + record.id.substr(0, 8)},
               {"level", record.configuration["level"]}};
  if (report.experiment.contains("measure")) json["measure"] = report.experiment["measure"];
  json["fixed"] = Json::object();
  json["axes"] = Json::object();
  for (const auto& [axis, value] : record.axes.items()) json["axes"][axis] = Json::array({value});
  for (const auto& [key, value] : record.configuration.items()) {
    if (key == "level" || key == "device" || record.axes.contains(key)) continue;
    json["fixed"][key] = value;
  }
  json["seeds"] = {record.seed};
  return experiment_from_json(json, source, record.configuration["device"].get<std::string>());
}

}  // namespace transpool
