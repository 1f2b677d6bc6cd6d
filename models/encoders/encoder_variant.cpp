#include "models/encoders/encoder_variant.h"

#include "operators/pooling/tournament.h"

#include <fmt/format.h>

#include <charconv>
#include <numeric>

namespace transpool {
namespace {

/// The value of `halve_after_option`, ascending. Throws UsageError naming what is not a layer of `layers` or comes twice.
std::vector<std::int64_t> explicit_layers(const Json& value, std::int64_t layers) {
  if (value.empty()) throw UsageError("halve_after: [] is not allowed; allowed: one layer or more");
  std::map<std::int64_t, bool> chosen;
  for (const auto& item : value) {
    const bool layer = item.is_number_integer() && item.get<std::int64_t>() >= 0 && item.get<std::int64_t>() < layers;
    if (!layer || !chosen.emplace(item.get<std::int64_t>(), true).second)
      throw UsageError(fmt::format("halve_after: {} is not allowed; allowed: 0 to {}, each once", item.dump(), layers - 1));
  }
  std::vector<std::int64_t> ascending;
  for (const auto& [layer, yes] : chosen) ascending.push_back(layer);
  return ascending;
}

}  // namespace

Registry<EncoderVariant>& encoder_registry() {
  static Registry<EncoderVariant> registry("encoder", "encoder");
  return registry;
}

std::vector<OptionSpec> pooling_encoder_options() {
  return {{.name = "pooling",
           .type = OptionType::variant,
           .meaning = "pooling operator; null: the cell's `pooling`",
           .variant_kind = "pooling",
           .optional = true},
          {.name = "scorer",
           .type = OptionType::variant,
           .meaning = "scorer; null: the cell's `scorer`",
           .variant_kind = "scorer",
           .optional = true},
          pooled_length_option(),
          {.name = "chunk",
           .type = OptionType::integer,
           .meaning = "rows of one chunk, m; null: the cell's `chunk`",
           .minimum = 1,
           .optional = true}};
}

OptionSpec pooled_length_option() {
  return {.name = "pooled_length",
          .type = OptionType::integer,
          .meaning = "rows left, k; null: the cell's `pooled_length`",
          .minimum = 1,
          .optional = true};
}

OptionSpec attention_option(const std::string& name, const std::string& meaning) {
  return {.name = name,
          .type = OptionType::variant,
          .meaning = meaning + "; null: the cell's `attention`",
          .variant_kind = "attention",
          .optional = true};
}

OptionSpec widths_option(const std::string& otherwise) {
  return {.name = "widths",
          .type = OptionType::object,
          .meaning = "width schedule, {\"0\": 2048, \"1\": 512}; null: " + otherwise,
          .optional = true};
}

std::map<std::int64_t, std::int64_t> explicit_widths(const Json& value) {
  std::map<std::int64_t, std::int64_t> widths;
  for (const auto& item : value.items()) {
    std::int64_t layer = -1;
    const auto& key = item.key();
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), layer);
    if (parsed.ptr != key.data() + key.size() || !item.value().is_number_integer())
      throw UsageError(
          fmt::format("widths: \"{}\": {} is not allowed; allowed: layer number: rows, as in {{\"0\": 2048, \"1\": 512}}",
                      key, item.value().dump()));
    widths[layer] = item.value().get<std::int64_t>();
  }
  return widths;
}

OptionSpec halve_after_option(const std::string& otherwise) {
  return {.name = "halve_after",
          .type = OptionType::list,
          .meaning = "layers after which the length is halved, counted from 0; null: " + otherwise,
          .optional = true};
}

void apply_pooling_options(EncoderRequest& request, const Options& options) {
  if (options.has("pooling")) request.base.pooling = options.raw("pooling");
  if (options.has("scorer")) request.base.scorer = options.raw("scorer");
  if (options.has("pooled_length")) request.pooled_length = options.integer("pooled_length");
  if (options.has("chunk")) request.chunk = options.integer("chunk");
}

Json blockwise_attention(std::int64_t chunk) { return Json{{"name", "blockwise"}, {"chunk", chunk}}; }

std::map<std::int64_t, std::int64_t> halving_schedule(std::int64_t n, std::int64_t k, std::int64_t layers) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(layers));
  std::iota(all.begin(), all.end(), 0);
  return halving_schedule(n, k, all);
}

std::map<std::int64_t, std::int64_t> halving_schedule(std::int64_t n, std::int64_t k,
                                                      const std::vector<std::int64_t>& layers) {
  const auto halvings = tournament_rounds(n, k);
  std::map<std::int64_t, std::int64_t> widths;
  std::int64_t done = 0;
  const auto count = static_cast<std::int64_t>(layers.size());
  for (std::int64_t i = 0; i < count; ++i) {
    done += halvings / count + (i < halvings % count ? 1 : 0);
    widths[layers[static_cast<std::size_t>(i)]] = std::max(k, (n + (std::int64_t{1} << done) - 1) >> done);
  }
  if (!widths.empty()) widths.rbegin()->second = k;
  return widths;
}

EncoderConfig halved_after(const EncoderRequest& request, const Options& options, HalvingLayers by_default) {
  auto config = request.base;
  const auto n = request.source_length, k = request.pooled_length;
  config.widths = halving_schedule(n, k,
                                   options.has("halve_after") ? explicit_layers(options.raw("halve_after"), config.layers)
                                                              : by_default(n, k, config.layers));
  return config;
}

}  // namespace transpool
