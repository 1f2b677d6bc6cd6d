#pragma once

#include "operators/options.h"

#include <cstdint>
#include <filesystem>

namespace transpool {

/// One point of a sweep: a full configuration, which its id is the hash of.
struct Cell {
  std::string id;
  std::string level;
  std::vector<std::string> measure;
  std::string device;          ///< "cpu" | "cuda"
  Json axes = Json::object();  ///< axis -> value as written
  std::int64_t seed = 0;
  Options values;           ///< every setting of the level by its dotted key
  std::string baseline;     ///< id of the cell it is compared with, or ""
  std::string skip_reason;  ///< why it cannot run, found before anything was built; "" if it can
};

/// The configuration as records carry it, and as a worker gets it.
Json to_json(const Cell& cell);
Cell cell_from_json(const Json& json);

struct Experiment {
  std::string name;
  std::string level;
  Json resolved = Json::object();  ///< as written, with --set applied and the device
  std::vector<Cell> cells;
  std::vector<std::string> left_out;  ///< cells that "where" removed, in words
};

/// Reads the file, applies each `PATH=VALUES`, checks everything and lays out the cells. Throws UsageError.
Experiment read_experiment(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                           const std::string& device);

/// The same for an experiment that is no file; `source` leads its messages.
Experiment experiment_from_json(const Json& json, const std::string& source, const std::string& device);

/// Applies one `--set PATH=VALUES`: a path below "axes" takes a list `a,b` or a range `from:to*factor`, `from:to+step`;
/// any other takes one value, JSON where it parses as such and text else.
void apply_override(Json& experiment, const std::string& assignment);

}  // namespace transpool
