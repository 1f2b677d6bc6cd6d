#include "runners/train/trainer.h"

#include "models/checkpoint.h"
#include "models/generation.h"
#include "runners/data/dataset.h"
#include "runners/data/salient_tokens.h"
#include "runners/measure/device.h"
#include "runners/measure/model_cell.h"
#include "runners/report/report.h"

#include <torch/nn/utils/clip_grad.h>
#include <torch/serialize.h>

#include <cmath>
#include <fstream>
#include <numbers>

namespace transpool {
namespace {

Batcher make_batcher(const Cell& cell, const TrainingData& data) {
  const auto seed = static_cast<std::uint64_t>(cell.seed) + 1;
  const auto batch = cell.values.integer("batch");
  std::vector<std::int64_t> lengths;
  for (const auto& example : data.train.examples) lengths.push_back(static_cast<std::int64_t>(example.source.size()));
  return Batcher(lengths, batch, seed, cell.values.integer("training.bucket"));
}

/// The scorer as given; one that asks which tokens are salient (an option `salient` left open) is told.
Json told_salient(const Json& scorer, const std::vector<std::int64_t>& salient) {
  const auto selection = scorer_registry().select(scorer);
  const auto& options = selection.options.json();
  if (salient.empty() || !options.contains("salient") || selection.options.has("salient")) return scorer;
  Json told = {{"name", selection.variant->name}};
  told.update(options);
  told["salient"] = salient;
  return told;
}

ModelConfig trained_model_config(const Cell& cell, const TrainingData& data) {
  auto config = model_config(cell, data.tokenizer->size());
  const auto salient = salient_tokens(data.corpus.train, *data.tokenizer);
  config.encoder.scorer = told_salient(config.encoder.scorer, salient);
  if (config.encoder.pruner) {
    auto pruner = *config.encoder.pruner;
    pruner.scorer = told_salient(pruner.scorer, salient);
    config.encoder.pruner = std::make_shared<const EncoderConfig>(pruner);
  }
  return config;
}

/// Runs `body` over consecutive batches of the split.
void for_batches(const EncodedSplit& split, std::int64_t size, const at::Device& device,
                 const std::function<void(const DeviceBatch&)>& body) {
  const auto count = static_cast<std::int64_t>(split.examples.size());
  for (std::int64_t start = 0; start < count; start += size) {
    std::vector<std::int64_t> indices;
    for (std::int64_t i = start; i < std::min(count, start + size); ++i) indices.push_back(i);
    body(to_device(pad_batch(split.examples, indices), device));
  }
}

}  // namespace

TrainingData load_training_data(const Cell& cell, const Where& where) {
  const auto& values = cell.values;
  const auto seed = static_cast<std::uint64_t>(cell.seed);
  TrainingData data;
  const auto [dataset, options] = select_dataset(values.raw("data"), where / "data");
  data.corpus = dataset->load(options, seed, where / "data");
  const Json wanted = values.has("tokenizer") ? values.raw("tokenizer") : Json(dataset->default_tokenizer);
  const auto [tokenizer, tokenizer_options] = select_tokenizer(wanted, where / "tokenizer");
  data.tokenizer = tokenizer->build(tokenizer_options, data.corpus.train, seed, where / "tokenizer");
  const auto encode = [&](const Split& split) {
    return encode_split(split, *data.tokenizer, values.integer("source_length"), values.integer("target_length"));
  };
  data.train = encode(data.corpus.train);
  data.validation = encode(data.corpus.validation);
  data.test = encode(data.corpus.test);
  return data;
}

DeviceBatch to_device(const PaddedBatch& batch, const at::Device& device) {
  const auto tensor = [&](const std::vector<std::int64_t>& values, at::IntArrayRef shape) {
    return torch::tensor(values, torch::kLong).view(shape).to(device);
  };
  DeviceBatch result{tensor(batch.source, {batch.batch, batch.source_width}),
                     tensor(batch.target_in, {batch.batch, batch.target_width}),
                     tensor(batch.target_out, {batch.batch, batch.target_width}), std::nullopt};
  for (const auto length : batch.source_lengths)
    if (length != batch.source_width) {
      result.lengths = tensor(batch.source_lengths, {batch.batch});
      break;
    }
  return result;
}

Trainer::Trainer(const Cell& cell, const TrainingData& data)
    : cell_(cell), data_(data), device_(device_from_name(cell.device)), batcher_(make_batcher(cell, data)) {
  at::manual_seed(static_cast<std::uint64_t>(cell.seed));
  model_ = Seq2Seq(trained_model_config(cell, data));
  model_->to(device_, parameter_dtype(dtype_from_name(cell.values.text("dtype"))));
  optimizer_ =
      std::make_shared<AdamW>(model_->parameters(), torch::optim::AdamWOptions(cell.values.real("training.learning_rate"))
                                                        .weight_decay(cell.values.real("training.weight_decay")));
}

double Trainer::learning_rate() const {
  const auto& values = cell_.values;
  const double peak = values.real("training.learning_rate");
  const auto warmup = static_cast<double>(values.integer("training.warmup"));
  const auto steps = static_cast<double>(values.integer("training.steps"));
  const auto at = static_cast<double>(step_) + 1;
  if (at <= warmup) return peak * at / warmup;
  const double share = steps > warmup ? (at - warmup) / (steps - warmup) : 1;
  const auto schedule = values.text("training.schedule");
  if (schedule == "linear") return peak * (1 - share);
  if (schedule == "cosine") return peak * (1 + std::cos(std::numbers::pi * share)) / 2;
  return peak;
}

double Trainer::update() {
  model_->train();
  for (auto& group : optimizer_->param_groups()) group.options().set_lr(learning_rate());
  const auto batch = to_device(pad_batch(data_.train.examples, batcher_.next()), device_);
  optimizer_->zero_grad();
  torch::Tensor loss;
  {
    const Precision precision(device_, dtype_from_name(cell_.values.text("dtype")));
    loss = token_loss(model_->forward(batch.source, batch.lengths, batch.target_in), batch.target_out);
  }
  loss.backward();
  if (const double clip = cell_.values.real("training.clip"); clip > 0)
    torch::nn::utils::clip_grad_norm_(model_->parameters(), clip);
  optimizer_->step();
  return loss.item<double>();
}

void Trainer::train(const std::function<void(const TrainingProgress&)>& report) {
  const auto steps = cell_.values.integer("training.steps");
  while (step_ < steps) {
    const double loss = update();
    ++step_;
    if (!std::isfinite(loss))
      throw std::runtime_error("training diverged: the loss is not finite at step " + std::to_string(step_));
    if (report) report({step_, loss});
  }
}

void Trainer::save(const std::filesystem::path& folder) {
  save_model(model_, folder);
  const auto partial = folder / "optimizer.pt.partial";
  torch::save(*optimizer_, partial.string());
  std::filesystem::rename(partial, folder / "optimizer.pt");
  data_.tokenizer->save(folder);
  const auto state = batcher_.state();
  write_atomically(
      folder / "training.json",
      Json{{"cell", to_json(cell_)}, {"step", step_}, {"epoch", state.epoch}, {"position", state.position}}.dump(2) + "\n");
}

void Trainer::resume(const std::filesystem::path& folder) {
  const Where where((folder / "training.json").string());
  std::ifstream file(folder / "training.json");
  if (!file) where.fail("cannot be read; allowed: a folder that training wrote");
  const auto json = Json::parse(file, nullptr, false);
  if (json.is_discarded() || !json.contains("step") || !json.contains("cell")) where.fail("is not a training state");
  if (json["cell"].value("id", "") != cell_.id)
    where.fail("belongs to another configuration; allowed: the one that began it, or a new --out");
  model_ = load_model(folder, device_);
  optimizer_ =
      std::make_shared<AdamW>(model_->parameters(), torch::optim::AdamWOptions(cell_.values.real("training.learning_rate"))
                                                        .weight_decay(cell_.values.real("training.weight_decay")));
  torch::load(*optimizer_, (folder / "optimizer.pt").string(), device_);
  step_ = json["step"];
  batcher_.restore({json["epoch"], json["position"]});
}

double token_accuracy(Seq2Seq& model, const EncodedSplit& split, const Cell& cell) {
  const torch::NoGradGuard no_gradient;
  const auto device = device_from_name(cell.device);
  model->eval();
  double right = 0, all = 0;
  for_batches(split, cell.values.integer("generation.batch"), device, [&](const DeviceBatch& batch) {
    const Precision precision(device, dtype_from_name(cell.values.text("dtype")));
    const auto guesses = model->forward(batch.source, batch.lengths, batch.target_in).argmax(2);
    const auto counted = batch.target_out != Tokenizer::pad;
    right += (guesses == batch.target_out).logical_and(counted).sum().item<double>();
    all += counted.sum().item<double>();
  });
  return all > 0 ? right / all : 0;
}

std::vector<std::string> generate_texts(Seq2Seq& model, const EncodedSplit& split, const Tokenizer& tokenizer,
                                        const Cell& cell) {
  const auto device = device_from_name(cell.device);
  model->eval();
  std::vector<std::string> texts;
  GenerationConfig config;
  config.max_length = cell.values.integer("target_length");
  config.min_length = std::min(cell.values.integer("generation.min_length"), config.max_length);
  for_batches(split, cell.values.integer("generation.batch"), device, [&](const DeviceBatch& batch) {
    const Precision precision(device, dtype_from_name(cell.values.text("dtype")));
    const auto tokens = generate_greedy(model, batch.source, batch.lengths, config).to(at::kCPU, at::kInt).contiguous();
    for (std::int64_t row = 0; row < tokens.size(0); ++row)
      texts.push_back(tokenizer.decode(
          {tokens.data_ptr<std::int32_t>() + row * tokens.size(1), static_cast<std::size_t>(tokens.size(1))}));
  });
  return texts;
}

}  // namespace transpool
