#include "models/encoders/encoder_variant.h"

#include <cmath>

namespace transpool {
namespace {

/// n shrunk to k by the same factor after each layer.
std::map<std::int64_t, std::int64_t> geometric_schedule(std::int64_t n, std::int64_t k, std::int64_t layers) {
  std::map<std::int64_t, std::int64_t> widths;
  const double ratio = static_cast<double>(k) / static_cast<double>(n);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const double share = static_cast<double>(layer + 1) / static_cast<double>(layers);
    widths[layer] = std::llround(static_cast<double>(n) * std::pow(ratio, share));
  }
  widths[layers - 1] = k;
  return widths;
}

const RegisterEncoder registration({
    {.name = "power_bert",
     .description = "full attention; after each layer the rows that receive most attention stay",
     .source = "arXiv 2001.08950, PoWER-BERT; the widths are given, not learned",
     .options = {{.name = "pooling",
                  .type = OptionType::variant,
                  .fallback = "column_attention",
                  .meaning = "pooling operator",
                  .variant_kind = "pooling"},
                 pooled_length_option(),
                 attention_option("attention", "attention operator"),
                 widths_option("n shrinks to k by the same factor after each layer")}},
    [](EncoderRequest request, const Options& options) {
      apply_pooling_options(request, options);
      auto& base = request.base;
      if (options.has("attention")) base.attention = options.raw("attention");
      base.scorer = "position";  // column_attention scores rows by itself
      base.widths = options.has("widths") ? explicit_widths(options.raw("widths"))
                                          : geometric_schedule(request.source_length, request.pooled_length, base.layers);
      return base;
    },
});

}  // namespace
}  // namespace transpool
