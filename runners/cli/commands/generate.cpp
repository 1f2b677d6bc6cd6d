#include "models/checkpoint.h"
#include "runners/cli/command.h"
#include "runners/measure/device.h"
#include "runners/report/report.h"
#include "runners/train/trainer.h"

#include <fmt/format.h>

#include <fstream>
#include <iostream>

namespace transpool::cli {
namespace {

namespace po = boost::program_options;

/// One document a line: {"source": text} or a published article's {"article_text": [sentences]}; "target" is kept.
Split read_documents(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw UsageError(path + ": cannot be read; allowed: JSON lines with \"source\" or \"article_text\"");
  Split split;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto json = Json::parse(line, nullptr, false);
    const Where where(fmt::format("{}:{}", path, number));
    if (json.is_discarded() || !json.is_object()) where.fail("is not a JSON object");
    Document document;
    if (json.contains("source") && json["source"].is_string()) document.source = json["source"];
    else if (json.contains("article_text") && json["article_text"].is_array()) {
      for (const auto& sentence : json["article_text"]) {
        if (!sentence.is_string()) (where / "article_text").fail("is not a list of texts");
        document.source += (document.source.empty() ? "" : "\n") + sentence.get<std::string>();
      }
    } else where.fail("has neither \"source\" (text) nor \"article_text\" (list of texts)");
    if (json.contains("target") && json["target"].is_string()) document.target = json["target"];
    split.documents.push_back(document);
  }
  if (split.documents.empty()) throw UsageError(path + ": holds no documents");
  return split;
}

int generate(const std::vector<std::string>& arguments) {
  po::options_description options("options");
  options.add_options()("checkpoint", po::value<std::string>()->required(), "folder that `transpool train` wrote")(
      "data", po::value<std::string>()->required(), "JSON lines with \"source\" or \"article_text\"")(
      "out", po::value<std::string>()->required(), "JSON lines with \"candidate\" and, where given, \"reference\"")(
      "device", po::value<std::string>()->default_value("cpu"), "cpu or cuda");
  const auto parsed = parse("generate", options, {}, arguments);
  if (parsed.help_printed) return done;
  const auto device = device_from_name(parsed.get<std::string>("device"));
  const std::filesystem::path checkpoint = parsed.get<std::string>("checkpoint");
  const auto split = read_documents(parsed.get<std::string>("data"));
  auto model = load_model(checkpoint, device);
  const auto tokenizer = load_tokenizer(checkpoint);
  std::ifstream file(checkpoint / "training.json");
  const auto state = Json::parse(file, nullptr, false);
  if (state.is_discarded() || !state.contains("cell"))
    Where((checkpoint / "training.json").string()).fail("is not a training state");
  auto cell = cell_from_json(state["cell"]);
  cell.device = parsed.get<std::string>("device");
  const auto encoded =
      encode_split(split, *tokenizer, cell.values.integer("source_length"), cell.values.integer("target_length"));
  const auto texts = generate_texts(model, encoded, *tokenizer, cell);
  std::string lines;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    Json line = Json::object();
    if (!split.documents[i].target.empty()) line["reference"] = split.documents[i].target;
    line["candidate"] = texts[i];
    lines += line.dump() + "\n";
  }
  write_atomically(parsed.get<std::string>("out"), lines);
  std::cout << fmt::format("{}: {} documents\n", parsed.get<std::string>("out"), texts.size());
  return done;
}

const RegisterCommand registration({"generate", "--checkpoint DIR --data FILE.jsonl --out FILE.jsonl [--device cpu|cuda]",
                                    "summarises documents with a trained model", generate});

}  // namespace
}  // namespace transpool::cli
