#pragma once

#include "models/seq2seq.h"
#include "runners/data/batch.h"
#include "runners/sweep/experiment.h"
#include "runners/train/adamw.h"

#include <filesystem>

namespace transpool {

/// Documents, tokenizer and encoded splits of a quality cell.
struct TrainingData {
  Corpus corpus;
  std::unique_ptr<Tokenizer> tokenizer;
  EncodedSplit train, validation, test;
};

/// Loads, tokenises and cuts as the cell says. Throws UsageError for bad files.
TrainingData load_training_data(const Cell& cell, const Where& where);

struct TrainingProgress {
  std::int64_t step = 0;
  double loss = 0;
};

/// A model on its way through training. Everything follows from the cell's seed.
class Trainer {
 public:
  Trainer(const Cell& cell, const TrainingData& data);

  /// Runs up to training.steps updates from where it stands; calls `report` after each.
  void train(const std::function<void(const TrainingProgress&)>& report);

  /// Model, optimiser and place in the data, written atomically; restored by resume().
  void save(const std::filesystem::path& folder);
  void resume(const std::filesystem::path& folder);

  Seq2Seq& model() { return model_; }
  std::shared_ptr<AdamW> optimizer() { return optimizer_; }
  std::int64_t step() const { return step_; }

 private:
  double update();
  double learning_rate() const;

  Cell cell_;
  const TrainingData& data_;
  at::Device device_;
  Seq2Seq model_{nullptr};
  std::shared_ptr<AdamW> optimizer_;
  Batcher batcher_;
  std::int64_t step_ = 0;
};

/// Moves a padded batch to the device; lengths only where something is padded.
struct DeviceBatch {
  torch::Tensor source, target_in, target_out;
  std::optional<torch::Tensor> lengths;
};
DeviceBatch to_device(const PaddedBatch& batch, const at::Device& device);

/// Share of target tokens that teacher forcing gets right.
double token_accuracy(Seq2Seq& model, const EncodedSplit& split, const Cell& cell);

/// Greedy summaries of every example, decoded.
std::vector<std::string> generate_texts(Seq2Seq& model, const EncodedSplit& split, const Tokenizer& tokenizer,
                                        const Cell& cell);

}  // namespace transpool
