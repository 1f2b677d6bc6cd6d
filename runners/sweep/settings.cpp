#include "runners/sweep/settings.h"

#include "operators/registry.h"
#include "runners/data/dataset.h"
#include "runners/data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

namespace transpool {
namespace {

using enum OptionType;

const std::vector<std::string> models = {"layer", "encoder", "model", "training", "generation", "quality"};
const std::vector<std::string> stacks = {"encoder", "model", "training", "generation", "quality"};
const std::vector<std::string> poolings = {"pooling_layer", "layer",      "encoder", "model",
                                           "training",      "generation", "quality"};
const std::vector<std::string> decoders = {"model", "training", "generation", "quality"};
const std::vector<std::string> synthetic = {"operator", "pooling_layer", "layer",     "encoder",
                                            "model",    "training",      "generation"};

std::vector<Setting> make_settings() {
  const std::vector<std::string> all = {};
  const std::vector<std::string> operators_only = {"operator"};
  const std::vector<std::string> quality = {"quality"};
  return {
      {{.name = "operator",
        .type = choice,
        .fallback = "pooling",
        .meaning = "kind of operator",
        .choices = {"pooling", "attention"}},
       operators_only},
      {{.name = "encoder", .type = variant, .fallback = "vanilla", .meaning = "named encoder", .variant_kind = "encoder"},
       models},
      {{.name = "pooling",
        .type = variant,
        .fallback = "successive_halving",
        .meaning = "pooling operator",
        .variant_kind = "pooling"},
       all},
      {{.name = "attention",
        .type = variant,
        .fallback = "full",
        .meaning = "attention operator",
        .variant_kind = "attention"},
       all},
      {{.name = "scorer",
        .type = variant,
        .fallback = "linear",
        .meaning = "scorer of each pooling layer",
        .variant_kind = "scorer"},
       poolings},
      {{.name = "fused_pooling",
        .type = choice,
        .fallback = "auto",
        .meaning = "scorer and pooling operator as one kernel where the device has one for both, or always in turn",
        .choices = {"auto", "off"}},
       poolings},
      {{.name = "part",
        .type = choice,
        .fallback = "layer",
        .meaning =
            "what of a pooling layer is timed: scorer and operator, the operator on the scorer's scores, or the scorer",
        .choices = {"layer", "pooling", "scorer"}},
       {"pooling_layer"}},
      {{.name = "batch",
        .type = integer,
        .fallback = 16,
        .meaning = "sequences in a batch, B",
        .minimum = 1,
        .maximum = 65536},
       all},
      {{.name = "source_length",
        .type = integer,
        .fallback = 2048,
        .meaning = "source rows, n",
        .minimum = 1,
        .maximum = 1 << 22},
       all},
      {{.name = "target_length",
        .type = integer,
        .fallback = 256,
        .meaning = "target rows",
        .minimum = 1,
        .maximum = 1 << 20},
       decoders},
      {{.name = "pooled_length",
        .type = integer,
        .fallback = 512,
        .meaning = "rows left by pooling, k",
        .minimum = 1,
        .maximum = 1 << 22},
       all},
      {{.name = "chunk",
        .type = integer,
        .fallback = 512,
        .meaning = "rows of a chunk in blockwise encoders, m",
        .minimum = 1,
        .maximum = 1 << 22},
       models},
      {{.name = "width", .type = integer, .fallback = 512, .meaning = "model width, d", .minimum = 1, .maximum = 65536},
       all},
      {{.name = "heads", .type = integer, .fallback = 8, .meaning = "attention heads, h", .minimum = 1, .maximum = 4096},
       all},
      {{.name = "feed_forward",
        .type = integer,
        .fallback = 2048,
        .meaning = "inner width of feed-forward blocks",
        .minimum = 1,
        .maximum = 1 << 20},
       models},
      {{.name = "layers", .type = integer, .fallback = 2, .meaning = "encoder layers", .minimum = 1, .maximum = 1024},
       stacks},
      {{.name = "decoder_layers",
        .type = integer,
        .fallback = 2,
        .meaning = "decoder layers",
        .minimum = 1,
        .maximum = 1024},
       decoders},
      {{.name = "norm",
        .type = choice,
        .fallback = "post",
        .meaning = "layer normalisation before or after blocks",
        .choices = {"pre", "post"}},
       models},
      {{.name = "activation",
        .type = choice,
        .fallback = "relu",
        .meaning = "feed-forward activation",
        .choices = {"relu", "gelu"}},
       models},
      {{.name = "dropout", .type = real, .fallback = 0.0, .meaning = "dropout", .minimum = 0, .maximum = 0.95}, models},
      {{.name = "vocabulary",
        .type = integer,
        .fallback = 32000,
        .meaning = "vocabulary of random tokens",
        .minimum = 4,
        .maximum = 1 << 24},
       {"encoder", "model", "training", "generation"}},
      {{.name = "dtype",
        .type = choice,
        .fallback = "float32",
        .meaning = "element type; models run half types under autocast",
        .choices = {"float64", "float32", "bfloat16", "float16"}},
       all},
      {{.name = "pass",
        .type = choice,
        .fallback = "forward+backward",
        .meaning = "what one timed pass is",
        .choices = {"forward", "forward+backward"}},
       {"operator", "pooling_layer", "layer", "encoder", "model"}},
      {{.name = "scores",
        .type = choice,
        .fallback = "uniform",
        .meaning = "distribution of the random scores",
        .choices = {"uniform", "gaussian", "two_peaked", "near_ties", "trained_like", "all_low"}},
       operators_only},
      {{.name = "selection.draws",
        .type = integer,
        .fallback = 8,
        .meaning = "batches of random inputs that selection quality is the mean over",
        .minimum = 1,
        .maximum = 100000},
       operators_only},
      {{.name = "selection.smoothing",
        .type = real,
        .fallback = 0.1,
        .meaning = "width of the Gaussian that smooths the hard objective, in standard deviations of the scores",
        .minimum = 1e-6,
        .maximum = 1e3},
       operators_only},
      {{.name = "selection.noise_draws",
        .type = integer,
        .fallback = 64,
        .meaning = "draws of noise for the smoothed gradient and for the variance of a stochastic one",
        .minimum = 2,
        .maximum = 100000},
       operators_only},
      {{.name = "selection.weight_gflop",
        .type = real,
        .fallback = 20.0,
        .meaning = "work a draw may spend on whole weight matrices; fewer rows of the batch, or none, where more is needed",
        .minimum = 0,
        .maximum = 1e9},
       operators_only},
      {{.name = "lengths",
        .type = choice,
        .fallback = "full",
        .meaning = "rows that are valid: all, or half of them to all at random",
        .choices = {"full", "random"}},
       synthetic},
      {{.name = "backend",
        .type = text,
        .meaning = "backend that must run, as records name it (cuda, aten ...); null: whichever does",
        .optional = true},
       operators_only},
      {{.name = "causal", .type = boolean, .fallback = false, .meaning = "attention masks the future"}, operators_only},
      {{.name = "data", .type = variant, .fallback = "planted_salience", .meaning = "data set", .variant_kind = "dataset"},
       quality},
      {{.name = "tokenizer",
        .type = variant,
        .meaning = "tokenizer; null: the data set's own",
        .variant_kind = "tokenizer",
        .optional = true},
       quality},
      {{.name = "training.steps", .type = integer, .fallback = 200, .meaning = "updates", .minimum = 0, .maximum = 1e9},
       quality},
      {{.name = "training.learning_rate",
        .type = real,
        .fallback = 5e-4,
        .meaning = "peak learning rate",
        .minimum = 0,
        .maximum = 10},
       quality},
      {{.name = "training.warmup",
        .type = integer,
        .fallback = 50,
        .meaning = "updates of linear warm-up",
        .minimum = 0,
        .maximum = 1e9},
       quality},
      {{.name = "training.schedule",
        .type = choice,
        .fallback = "cosine",
        .meaning = "learning rate after the warm-up",
        .choices = {"constant", "linear", "cosine"}},
       quality},
      {{.name = "training.weight_decay",
        .type = real,
        .fallback = 0.01,
        .meaning = "AdamW weight decay",
        .minimum = 0,
        .maximum = 1},
       quality},
      {{.name = "training.clip",
        .type = real,
        .fallback = 1.0,
        .meaning = "largest gradient norm; 0: no clipping",
        .minimum = 0,
        .maximum = 1e9},
       quality},
      {{.name = "training.bucket",
        .type = integer,
        .fallback = 1,
        .meaning = "batches sorted by length together; 1: none",
        .minimum = 1,
        .maximum = 1e6},
       quality},
      {{.name = "generation.batch",
        .type = integer,
        .fallback = 32,
        .meaning = "documents generated at once",
        .minimum = 1,
        .maximum = 65536},
       quality},
      {{.name = "generation.min_length",
        .type = integer,
        .fallback = 0,
        .meaning = "tokens before eos may come",
        .minimum = 0,
        .maximum = 1 << 20},
       quality},
      {{.name = "rouge.stem", .type = boolean, .fallback = false, .meaning = "Porter stemming before ROUGE"}, quality},
      {{.name = "timing.warmup",
        .type = integer,
        .fallback = 3,
        .meaning = "passes before the first sample",
        .minimum = 0,
        .maximum = 10000},
       all},
      {{.name = "timing.min_samples",
        .type = integer,
        .fallback = 10,
        .meaning = "samples at least",
        .minimum = 3,
        .maximum = 100000},
       all},
      {{.name = "timing.max_samples",
        .type = integer,
        .fallback = 200,
        .meaning = "samples at most",
        .minimum = 3,
        .maximum = 100000},
       all},
      {{.name = "timing.target_error",
        .type = real,
        .fallback = 0.01,
        .meaning = "relative standard error of the median that ends sampling",
        .minimum = 1e-6,
        .maximum = 1},
       all},
      {{.name = "timing.cap_seconds",
        .type = real,
        .fallback = 10.0,
        .meaning = "time after which sampling ends all the same",
        .minimum = 0.01,
        .maximum = 1e6},
       all},
      {{.name = "timing.graph",
        .type = boolean,
        .fallback = false,
        .meaning = "times replays of the pass as one CUDA graph, on fixed inputs: what the device takes, without launching"},
       synthetic},
      {{.name = "timing.head_start",
        .type = boolean,
        .fallback = true,
        .meaning = "a CUDA device waits until the host has launched the pass, whose time then is the device's alone"},
       {"operator", "pooling_layer"}},
      {{.name = "timeout_seconds",
        .type = real,
        .fallback = 3600.0,
        .meaning = "time after which a cell is given up",
        .minimum = 1,
        .maximum = 1e7},
       all},
  };
}

bool reads(const Setting& setting, const std::string& level) {
  return setting.levels.empty() || std::find(setting.levels.begin(), setting.levels.end(), level) != setting.levels.end();
}

/// Values inside a variant that name variants themselves, by the name of their registry.
void resolve_nested(Json& full, const Where& where) {
  for (auto& item : full.items())
    if (const auto found = catalogue().find(item.key()); found != catalogue().end() && !item.value().is_null())
      item.value() = found->second->resolve(item.value(), where / item.key());
}

}  // namespace

const std::vector<Setting>& settings() {
  static const auto all = make_settings();
  return all;
}

std::vector<std::string> level_names() {
  return {"operator", "pooling_layer", "layer", "encoder", "model", "training", "generation", "quality"};
}

std::vector<std::string> measure_names() { return {"time", "memory", "flops", "roofline", "selection", "rouge"}; }

std::vector<OptionSpec> settings_of(const std::string& level, const Where& where) {
  const auto levels = level_names();
  if (std::find(levels.begin(), levels.end(), level) == levels.end())
    where.fail(unknown_name_message("level", level, levels));
  std::vector<OptionSpec> specs;
  for (const auto& setting : settings())
    if (reads(setting, level)) specs.push_back(setting.spec);
  return specs;
}

const OptionSpec& find_setting(const std::string& level, const std::string& key, const Where& where) {
  std::vector<std::string> known;
  for (const auto& setting : settings()) {
    if (reads(setting, level)) known.push_back(setting.spec.name);
    if (setting.spec.name != key) continue;
    if (reads(setting, level)) return setting.spec;
    where.fail(fmt::format("setting \"{}\" is not read at level {}; it belongs to {}", key, level, join(setting.levels)));
  }
  where.fail(unknown_name_message("setting", key, known));
}

Json resolve_setting(const OptionSpec& spec, const Json& value, const Where& where) {
  check_option(spec, value, where);
  if (spec.type != variant || value.is_null()) return value;
  Json full;
  if (spec.variant_kind == "dataset" || spec.variant_kind == "tokenizer") {
    const auto complete = [&](const auto& selected) {
      full = Json{{"name", selected.first->name}};
      full.update(selected.second.json());
    };
    if (spec.variant_kind == "dataset") complete(select_dataset(value, where));
    else complete(select_tokenizer(value, where));
    return full;
  }
  full = catalogue().at(spec.variant_kind)->resolve(value, where);
  resolve_nested(full, where);
  return full;
}

}  // namespace transpool
