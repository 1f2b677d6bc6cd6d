#include "runners/rouge/rouge.h"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "runners/cli/command.h"
#include "runners/report/report.h"
#include "runners/rouge/bootstrap.h"

namespace transpool::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t bootstrap_seed = 0;
constexpr const char* expected_line = R"(one {"reference": "text", "candidate": "text"} a line)";

const std::string& text_of(const Json& record, const char* key, const Where& line) {
  if (!record.contains(key)) {
    std::vector<std::string> present;
    for (const auto& item : record.items()) present.push_back(item.key());
    const auto near = nearest_name(key, present);
    line.fail(fmt::format("has no \"{}\"{}; allowed: {}", key, near.empty() ? "" : ", but \"" + near + "\"", expected_line));
  }
  const auto& value = record[key];
  if (!value.is_string()) (line / key).fail(fmt::format("is of type {}, allowed: text", value.type_name()));
  return value.get_ref<const std::string&>();
}

Json parse_line(const std::string& text, const Where& line) {
  // A blank line may be a text that went missing; to skip it would shift all later pairs against other files.
  if (text.find_first_not_of(" \t\r") == std::string::npos) line.fail(fmt::format("is blank, allowed: {}", expected_line));
  Json record;
  try {
    record = Json::parse(text);
  } catch (const Json::parse_error& error) {
    std::string message = error.what();
    if (const auto end = message.find("] "); end != std::string::npos) message.erase(0, end + 2);
    line.fail(fmt::format("is not JSON ({}), allowed: {}", message, expected_line));
  }
  if (!record.is_object()) line.fail(fmt::format("is of type {}, allowed: {}", record.type_name(), expected_line));
  return record;
}

std::vector<RougeScores> score_file(const fs::path& path, bool stem) {
  if (!fs::exists(path)) throw UsageError(path.string() + ": there is no such file");
  if (fs::is_directory(path)) throw UsageError(path.string() + ": is a folder, allowed: a file with " + expected_line);
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UsageError(path.string() + ": cannot be opened for reading");
  std::vector<RougeScores> scores;
  for (std::string text; std::getline(file, text);) {
    const Where line(fmt::format("{}: line {}", path.string(), scores.size() + 1));
    const auto record = parse_line(text, line);
    scores.push_back(rouge(text_of(record, "reference", line), text_of(record, "candidate", line), stem));
  }
  if (file.bad()) throw UsageError(path.string() + ": cannot be read");
  if (scores.empty()) throw UsageError(path.string() + ": is empty, allowed: " + expected_line);
  return scores;
}

/// Refuses what a replacement would destroy or could not reach, before any time is spent on scoring.
void check_output(const fs::path& output, const fs::path& input) {
  const Where where("--per-pair " + output.string());
  const auto folder = output.parent_path();
  std::error_code ignored;
  if (!folder.empty() && !fs::is_directory(folder)) where.fail("there is no folder \"" + folder.string() + "\"");
  const auto status = fs::symlink_status(output, ignored);
  if (fs::exists(status) && !fs::is_regular_file(status)) where.fail("exists and is not a regular file");
  if (fs::equivalent(output, input, ignored)) where.fail("is the file of pairs itself; name another file");
}

void write_per_pair(const fs::path& path, const std::vector<RougeScores>& scores) {
  std::string text;
  for (const auto& one : scores) text += to_json(one).dump() + "\n";
  write_atomically(path, text);
}

/// Over all documents: the mean of each figure, and the interval of the F-measure.
struct Aggregate {
  std::string name;
  double precision;
  double recall;
  Interval fmeasure;
};

std::vector<Aggregate> aggregate(const std::vector<RougeScores>& scores) {
  std::vector<Aggregate> all;
  for (const auto& kind : rouge_kinds) {
    Aggregate one{kind.name, 0, 0, {}};
    std::vector<double> fmeasures;
    for (const auto& document : scores) {
      const auto& score = document.*kind.score;
      one.precision += score.precision;
      one.recall += score.recall;
      fmeasures.push_back(score.fmeasure);
    }
    one.precision /= static_cast<double>(scores.size());
    one.recall /= static_cast<double>(scores.size());
    one.fmeasure = bootstrap_mean(fmeasures, bootstrap_seed);
    all.push_back(one);
  }
  return all;
}

Json protocol_with_interval(bool stem) {
  auto protocol = rouge_protocol(stem);
  protocol["interval"] = fmt::format("{:g} % of F, percentile bootstrap over documents, {} resamples, seed {}",
                                     100 * default_confidence, default_resamples, bootstrap_seed);
  return protocol;
}

std::string as_json(const std::vector<Aggregate>& all, std::size_t pairs, bool stem) {
  Json json = Json::object();
  json["pairs"] = pairs;
  for (const auto& one : all) {
    json[one.name] = {{"precision", one.precision},
                      {"recall", one.recall},
                      {"fmeasure", one.fmeasure.value},
                      {"interval", {one.fmeasure.low, one.fmeasure.high}}};
  }
  json["protocol"] = protocol_with_interval(stem);
  return json.dump(2) + "\n";
}

std::string as_text(const std::vector<Aggregate>& all, std::size_t pairs, bool stem) {
  auto text = fmt::format("{} pair{}\n\n{:<10}{:>10}{:>10}{:>10}   {}\n", pairs, pairs == 1 ? "" : "s", "", "precision",
                          "recall", "F", "95 % interval of F");
  for (const auto& one : all) {
    text += fmt::format("{:<10}{:>10.4f}{:>10.4f}{:>10.4f}   [{:.4f}, {:.4f}]\n", one.name, one.precision, one.recall,
                        one.fmeasure.value, one.fmeasure.low, one.fmeasure.high);
  }
  text += "\n";
  const auto protocol = protocol_with_interval(stem);
  for (const auto& item : protocol.items())
    text += fmt::format("{:<13}{}\n", item.key(), item.value().get_ref<const std::string&>());
  return text;
}

int run(const std::vector<std::string>& arguments) {
  namespace po = boost::program_options;
  po::options_description options("Options");
  options.add_options()("pairs", po::value<std::string>(), "the file of pairs (the first argument)")(
      "stem", "compare Porter stems instead of words")("per-pair", po::value<std::string>(),
                                                       "file for the scores of each pair, in the same order")(
      "format", po::value<std::string>()->default_value("text"), "text or json");
  const auto given = parse("rouge", options, {"pairs"}, arguments);
  if (given.help_printed) return done;

  const auto& format = given.get<std::string>("format");
  const std::vector<std::string> formats = {"text", "json"};
  if (format != "text" && format != "json") Where("transpool rouge").fail(unknown_name_message("--format", format, formats));
  if (!given.has("pairs")) throw UsageError("transpool rouge: needs a file of pairs; see transpool rouge --help");
  const fs::path input = given.get<std::string>("pairs");
  const bool stem = given.has("stem");
  if (given.has("per-pair")) check_output(given.get<std::string>("per-pair"), input);

  const auto scores = score_file(input, stem);
  if (given.has("per-pair")) write_per_pair(given.get<std::string>("per-pair"), scores);
  const auto all = aggregate(scores);
  std::cout << (format == "json" ? as_json(all, scores.size(), stem) : as_text(all, scores.size(), stem));
  return done;
}

const RegisterCommand registration({.name = "rouge",
                                    .synopsis = "PAIRS.jsonl [--stem] [--per-pair OUT.jsonl] [--format text|json]",
                                    .summary = "ROUGE scores of candidate texts against references",
                                    .run = run});

}  // namespace
}  // namespace transpool::cli
