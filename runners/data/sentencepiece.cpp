#include "runners/data/tokenizer.h"

#include "runners/report/report.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <unordered_map>

namespace transpool {
namespace {

/// Stands for a line end inside the model, as a symbol of its own.
constexpr const char* line_end = "<n>";

/// The trainer drops lines of more bytes than this without a word.
constexpr std::size_t longest_line = 4192;

class SentencePiece : public Tokenizer {
 public:
  SentencePiece(std::string model, const Where& where) : model_(std::move(model)) {
    const auto status = processor_.LoadFromSerializedProto(model_);
    if (!status.ok()) where.fail("is no SentencePiece model: " + status.ToString());
    if (processor_.pad_id() != pad || processor_.bos_id() != bos || processor_.eos_id() != eos ||
        processor_.unk_id() != unknown)
      where.fail("has other special ids; allowed: pad 0, bos 1, eos 2, unk 3");
    const int id = processor_.PieceToId(line_end);
    if (id != unknown) line_end_ = id;
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    std::size_t start = 0;
    while (true) {
      const auto end = text.find('\n', start);
      const auto line = text.substr(start, end == std::string_view::npos ? end : end - start);
      std::vector<int> pieces;
      const auto status = processor_.Encode({line.data(), line.size()}, &pieces);
      if (!status.ok()) throw std::runtime_error("SentencePiece: " + status.ToString());
      ids.insert(ids.end(), pieces.begin(), pieces.end());
      if (end == std::string_view::npos) return ids;
      if (line_end_ >= 0) ids.push_back(line_end_);
      start = end + 1;
    }
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    std::string text;
    std::vector<int> line;
    const auto flush = [&] {
      std::string decoded;
      const auto status = processor_.Decode(line, &decoded);
      if (!status.ok()) throw std::runtime_error("SentencePiece: " + status.ToString());
      text += decoded;
      line.clear();
    };
    for (const auto id : ids) {
      if (id < 0 || id >= size()) throw std::out_of_range("token id " + std::to_string(id) + " is not in the vocabulary");
      if (id == pad || id == bos || id == eos) continue;
      if (id != line_end_) {
        line.push_back(id);
        continue;
      }
      flush();
      text += '\n';
    }
    flush();
    return text;
  }

  std::int64_t size() const override { return processor_.GetPieceSize(); }

  void save(const std::filesystem::path& folder) const override {
    std::filesystem::create_directories(folder);
    write_atomically(folder / "sentencepiece.model", model_);
    write_tokenizer_description(folder, "sentencepiece", {{"model", "sentencepiece.model"}});
  }

 private:
  std::string model_;
  sentencepiece::SentencePieceProcessor processor_;
  int line_end_ = -1;  ///< -1: a model of others that has no such piece, so that line ends become spaces
};

std::string read_file(const std::filesystem::path& path, const Where& where) {
  std::ifstream file(path, std::ios::binary);
  if (!file) where.fail(path.string() + " cannot be read; allowed: a SentencePiece model");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Hands the lines of the training documents to the trainer.
class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(std::vector<std::string> lines) : lines_(std::move(lines)) {}
  bool done() const override { return at_ >= lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  std::size_t at_ = 0;
};

/// Adds the line in parts short enough for the trainer, cut between words.
void add_line(std::string_view line, std::vector<std::string>& lines) {
  while (line.size() > longest_line) {
    const auto space = line.rfind(' ', longest_line);
    if (space == std::string_view::npos || space == 0) return;  // one endless word teaches nothing
    lines.emplace_back(line.substr(0, space));
    line.remove_prefix(space + 1);
  }
  if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines.emplace_back(line);
}

std::vector<std::string> training_lines(const Split& training) {
  std::vector<std::string> lines;
  for (const auto& document : training.documents)
    for (const auto* text : {&document.source, &document.target}) {
      std::size_t start = 0;
      while (start < text->size()) {
        const auto end = std::min(text->find('\n', start), text->size());
        add_line(std::string_view(*text).substr(start, end - start), lines);
        start = end + 1;
      }
    }
  return lines;
}

/// Trains a model of the lines. The trainer samples them with a fixed seed of its own: the same lines, the same model.
std::string train(const std::unordered_map<std::string, std::string>& settings, Lines& lines, const Where& where) {
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
  if (status.ok()) return model;
  const auto text = status.ToString();
  if (text.find("Vocabulary size is smaller") != std::string::npos)
    (where / "vocabulary_size")
        .fail(settings.at("vocab_size") + " is too few for the characters of the training documents; allowed: more");
  where.fail("SentencePiece training: " + text);
}

std::unique_ptr<Tokenizer> build(const Options& options, const Split& training, std::uint64_t, const Where& where) {
  if (options.has("model"))
    return std::make_unique<SentencePiece>(read_file(options.text("model"), where / "model"), where / "model");
  Lines lines(training_lines(training));
  // The trainer ends the program where it is given nothing.
  if (lines.done()) where.fail("the training documents hold no words to train SentencePiece on");
  const auto model = train({{"model_type", options.text("model_type")},
                            {"vocab_size", std::to_string(options.integer("vocabulary_size"))},
                            {"hard_vocab_limit", "false"},
                            {"pad_id", std::to_string(Tokenizer::pad)},
                            {"bos_id", std::to_string(Tokenizer::bos)},
                            {"eos_id", std::to_string(Tokenizer::eos)},
                            {"unk_id", std::to_string(Tokenizer::unknown)},
                            {"user_defined_symbols", line_end},
                            {"input_sentence_size", std::to_string(options.integer("sentences"))},
                            {"shuffle_input_sentence", "true"},
                            {"max_sentence_length", std::to_string(longest_line)},
                            {"num_threads", "1"},
                            {"minloglevel", "2"}},
                           lines, where);
  return std::make_unique<SentencePiece>(model, where);
}

std::unique_ptr<Tokenizer> load(const std::filesystem::path& folder, const Json& description, const Where& where) {
  if (!description.contains("model") || !description["model"].is_string())
    (where / "model").fail("is missing, or no file name");
  return std::make_unique<SentencePiece>(read_file(folder / description["model"].get<std::string>(), where / "model"),
                                         where / "model");
}

const RegisterTokenizer registration({
    .name = "sentencepiece",
    .description = "SentencePiece, trained on the training documents or read from a file",
    .options = {{.name = "vocabulary_size",
                 .type = OptionType::integer,
                 .fallback = 8000,
                 .meaning = "pieces at most",
                 .minimum = 16,
                 .maximum = 1e6},
                {.name = "model_type",
                 .type = OptionType::choice,
                 .fallback = "unigram",
                 .meaning = "kind of model",
                 .choices = {"unigram", "bpe"}},
                {.name = "sentences",
                 .type = OptionType::integer,
                 .fallback = 20000,
                 .meaning = "sentences that training samples",
                 .minimum = 101,  // the trainer refuses samples of up to 100
                 .maximum = 1e9},
                {.name = "model",
                 .type = OptionType::text,
                 .meaning = "a model file to use instead of training one",
                 .optional = true}},
    .build = build,
    .load = load,
});

}  // namespace
}  // namespace transpool
