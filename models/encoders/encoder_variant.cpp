#include "models/encoders/encoder_variant.h"

#include "operators/pooling/tournament.h"

namespace transpool {

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
          {.name = "pooled_length",
           .type = OptionType::integer,
           .meaning = "rows left, k; null: the cell's `pooled_length`",
           .minimum = 1,
           .optional = true},
          {.name = "chunk",
           .type = OptionType::integer,
           .meaning = "rows of one chunk, m; null: the cell's `chunk`",
           .minimum = 1,
           .optional = true}};
}

void apply_pooling_options(EncoderRequest& request, const Options& options) {
  if (options.has("pooling")) request.base.pooling = options.raw("pooling");
  if (options.has("scorer")) request.base.scorer = options.raw("scorer");
  if (options.has("pooled_length")) request.pooled_length = options.integer("pooled_length");
  if (options.has("chunk")) request.chunk = options.integer("chunk");
}

Json blockwise_attention(std::int64_t chunk) { return Json{{"name", "blockwise"}, {"chunk", chunk}}; }

std::map<std::int64_t, std::int64_t> halving_schedule(std::int64_t n, std::int64_t k, std::int64_t layers) {
  const auto halvings = tournament_rounds(n, k);
  std::map<std::int64_t, std::int64_t> widths;
  std::int64_t done = 0;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    done += halvings / layers + (layer < halvings % layers ? 1 : 0);
    widths[layer] = std::max(k, (n + (std::int64_t{1} << done) - 1) >> done);
  }
  if (!widths.empty()) widths.rbegin()->second = k;
  return widths;
}

}  // namespace transpool
