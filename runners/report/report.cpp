#include "runners/report/report.h"

#include "runners/report/fields.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

namespace transpool {
namespace {

/// An open file of the system; closed at the end of the scope.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags) : path_(path), number_(::open(path.c_str(), flags, 0666)) {
    if (number_ < 0) fail("cannot be opened");
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number_); }

  void write(const std::string& text) const {
    for (std::size_t done = 0; done < text.size();) {
      const auto count = ::write(number_, text.data() + done, text.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("cannot be written");
      done += static_cast<std::size_t>(count);
    }
  }

  void sync() const {
    // A file system that has no sync (EINVAL) gives no better promise than the rename itself.
    if (::fsync(number_) != 0 && errno != EINVAL) fail("cannot be synced");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UsageError(path_.string() + ": " + what + ": " + std::strerror(errno));
  }

  std::filesystem::path path_;
  int number_;
};

std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  static std::atomic<unsigned> counter{0};
  return path.parent_path() /
         ("." + path.filename().string() + "." + std::to_string(::getpid()) + "." + std::to_string(counter++) + ".tmp");
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UsageError(path.string() + ": " + std::strerror(errno));
  return {std::istreambuf_iterator<char>(file), {}};
}

Json parse_json(const std::string& text, const Where& where) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    std::string message = error.what();
    if (const auto end = message.find("] "); end != std::string::npos) message.erase(0, end + 2);
    where.fail("is not JSON: " + message);
  }
}

void check_version(const Fields& fields) {
  fields.required("schema_version");
  const auto version = fields.integer("schema_version", 0);
  if (version < 1) fields.at("schema_version").fail("must be 1 or more");
  if (version > report_schema_version)
    fields.at("schema_version")
        .fail("is " + std::to_string(version) + ", but this program reads schemas up to " +
              std::to_string(report_schema_version) + ": use a newer transpool");
}

std::vector<Record> records_at(const Json& json, const Where& where) {
  if (!json.is_array()) where.fail("must be a list of records");
  std::vector<Record> records;
  std::map<std::string, std::size_t> places;
  for (std::size_t i = 0; i < json.size(); ++i) {
    records.push_back(record_from_json(json[i], where / i));
    const auto [place, fresh] = places.emplace(records.back().id, i);
    if (!fresh)
      (where / i / "id").fail("\"" + place->first + "\" is the id of record " + std::to_string(place->second) + " too");
  }
  return records;
}

}  // namespace

Json to_json(const Report& report) {
  Json json = Json::object();
  json["schema_version"] = report_schema_version;
  json["experiment"] = report.experiment;
  json["environment"] = report.environment;
  json["environments"] = report.environments;
  json["records"] = Json::array();
  for (const auto& record : report.records) json["records"].push_back(to_json(record));
  return json;
}

Report report_from_json(const Json& json, const Where& where) {
  const Fields fields(json, where, {"schema_version", "experiment", "environment", "environments", "records"});
  check_version(fields);
  Report report;
  report.experiment = fields.object("experiment");
  report.environment = fields.object("environment");
  report.environments = fields.object("environments");
  report.records = records_at(fields.required("records"), fields.at("records"));
  return report;
}

Report read_report(const std::filesystem::path& path) {
  const bool folder = std::filesystem::is_directory(path);
  const auto file = folder ? path / "report.json" : path;
  if (!std::filesystem::exists(file))
    throw UsageError(path.string() + (folder ? ": holds no report.json" : ": there is no such file"));
  const Where where(file.string());
  return report_from_json(parse_json(read_text(file), where), where);
}

void write_report(const std::filesystem::path& path, const Report& report) {
  write_atomically(path, pretty(to_json(report)));
}

void write_atomically(const std::filesystem::path& path, const std::string& text) {
  const auto temporary = temporary_beside(path);
  try {
    const Descriptor file(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
    file.write(text);
    file.sync();
    std::filesystem::rename(temporary, path);
  } catch (const std::exception& error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw UsageError(path.string() + ": cannot be replaced: " + error.what());
  }
  const auto folder = path.parent_path().empty() ? std::filesystem::path(".") : path.parent_path();
  Descriptor(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC).sync();
}

}  // namespace transpool
