#include "runners/data/dataset.h"
#include "runners/measure/device.h"
#include "runners/measure/model_cell.h"
#include "runners/rouge/bootstrap.h"
#include "runners/rouge/rouge.h"
#include "runners/train/trainer.h"

#include <fmt/format.h>

#include <cctype>
#include <chrono>
#include <set>

namespace transpool {
namespace {

/// ROUGE F-measures of one system, a list over documents for each kind.
using Scores = std::map<std::string, std::vector<double>>;

Scores score_all(const Split& split, const std::vector<std::string>& candidates, bool stem) {
  Scores scores;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const auto one = rouge(split.documents[i].target, candidates[i], stem);
    for (const auto& kind : rouge_kinds) scores[kind.name].push_back((one.*kind.score).fmeasure);
  }
  return scores;
}

/// The first `words` words of a text, with its line ends.
std::string lead(const std::string& text, std::int64_t words) {
  std::size_t at = 0;
  for (bool inside = false; at < text.size(); ++at) {
    const bool space = std::isspace(static_cast<unsigned char>(text[at])) != 0;
    if (!space && !inside && words-- == 0) break;
    inside = !space;
  }
  return text.substr(0, at);
}

/// The mean number of words of the training targets: how long the lead baseline is.
std::int64_t lead_words(const Split& training) {
  std::int64_t words = 0;
  for (const auto& document : training.documents) words += count_words(document.target);
  return std::max<std::int64_t>(1, words / std::max<std::int64_t>(1, static_cast<std::int64_t>(training.documents.size())));
}

std::vector<std::string> lead_texts(const TrainingData& data) {
  const auto words = lead_words(data.corpus.train);
  std::vector<std::string> texts;
  for (const auto& document : data.corpus.test.documents) texts.push_back(lead(document.source, words));
  return texts;
}

void add(Record& record, const std::string& name, const Interval& interval, const std::string& meaning,
         std::vector<double> samples = {}) {
  Summary summary{.name = name, .unit = "%", .value = 100 * interval.value, .higher_is_better = true};
  summary.interval = {100 * interval.low, 100 * interval.high};
  for (auto& sample : samples) sample *= 100;
  summary.samples = std::move(samples);
  summary.statistic = "mean";
  summary.meaning = meaning;
  record.summaries.push_back(std::move(summary));
}

void summarize_rouge(const Cell& cell, const Scores& trained, const Scores& untrained, const Scores& lead_scores,
                     Record& record) {
  const auto seed = static_cast<std::uint64_t>(cell.seed);
  for (const auto& kind : rouge_kinds)
    add(record, kind.name, bootstrap_mean(trained.at(kind.name), seed), "F-measure over the test documents",
        trained.at(kind.name));
  for (const auto* name : {"rouge1", "rougeL"}) {
    const std::string text = name;
    add(record, text + "_untrained", bootstrap_mean(untrained.at(text), seed),
        "F-measure of the same model before training");
    add(record, text + "_lead", bootstrap_mean(lead_scores.at(text), seed),
        "F-measure of the source's first words, as many as training targets have");
    add(record, text + "_over_untrained", paired_bootstrap_difference(trained.at(text), untrained.at(text), seed),
        "paired difference to the untrained model on the same documents");
    add(record, text + "_over_lead", paired_bootstrap_difference(trained.at(text), lead_scores.at(text), seed),
        "paired difference to the lead baseline on the same documents");
  }
}

void describe(const Cell& cell, const TrainingData& data, Trainer& trainer, Record& record) {
  record.details["model"] = to_json(trainer.model()->config());
  record.details["parameters"] = trainer.model()->parameter_count();
  record.details["backend"] =
      encoder_backends(trainer.model()->config().encoder, device_from_name(cell.device),
                       cell.values.integer("source_length"), dtype_from_name(cell.values.text("dtype")));
  record.details["data"] = {{"train", data.corpus.train.counts}, {"validation", data.corpus.validation.counts},
                            {"test", data.corpus.test.counts},   {"train_tokens", data.train.counts},
                            {"test_tokens", data.test.counts},   {"vocabulary", data.tokenizer->size()}};
  record.details["rouge_protocol"] = rouge_protocol(cell.values.flag("rouge.stem"));
  record.details["lead_words"] = lead_words(data.corpus.train);
}

bool asks_for_rouge(const Cell& cell) {
  return std::find(cell.measure.begin(), cell.measure.end(), "rouge") != cell.measure.end();
}

void measure(const Cell& cell, Record& record) {
  const auto data = load_training_data(cell, {});
  Trainer trainer(cell, data);
  describe(cell, data, trainer, record);
  if (asks_for_rouge(cell)) {
    const bool stem = cell.values.flag("rouge.stem");
    const auto& test = data.corpus.test;
    const auto untrained = score_all(test, generate_texts(trainer.model(), data.test, *data.tokenizer, cell), stem);
    const auto start = std::chrono::steady_clock::now();
    double loss = 0;
    trainer.train([&](const TrainingProgress& progress) { loss = progress.loss; });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto trained = score_all(test, generate_texts(trainer.model(), data.test, *data.tokenizer, cell), stem);
    summarize_rouge(cell, trained, untrained, score_all(test, lead_texts(data), stem), record);
    record.summaries.push_back({.name = "token_accuracy",
                                .unit = "%",
                                .value = 100 * token_accuracy(trainer.model(), data.test, cell),
                                .higher_is_better = true,
                                .meaning = "share of test target tokens that teacher forcing gets right"});
    record.details["training"] = {{"steps", trainer.step()}, {"seconds", seconds}, {"last_loss", loss}};
  }
  auto training = training_workload(cell, trainer.model(), trainer.optimizer(), false);
  training.prefix = "train_";
  measure_workload(cell, training, record);
  auto inference = generation_workload(cell, trainer.model(), false);
  inference.prefix = "inference_";
  measure_workload(cell, inference, record);
}

/// Files are read once before anything runs, so that a damaged one is an error of the call and not of a cell.
void check(const Cell& cell, const Where& where) {
  static std::set<std::string> readable;
  check_model_cell(cell, where);
  const Where place(where.source(), "/data");
  const auto [dataset, options] = select_dataset(cell.values.raw("data"), place);
  if (!dataset->needs_files || !readable.insert(cell.values.raw("data").dump()).second) return;
  dataset->load(options, static_cast<std::uint64_t>(cell.seed), place);
}

const RegisterLevel registration({"quality", "trains a model, scores its summaries, then measures training and generation",
                                  check, estimate_model_cell, measure});

}  // namespace
}  // namespace transpool
