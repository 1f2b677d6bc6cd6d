#include "models/encoders/encoder_variant.h"

#include <fmt/format.h>

#include <charconv>

namespace transpool {
namespace {

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

std::vector<OptionSpec> options() {
  auto specs = pooling_encoder_options();
  specs.push_back(
      {.name = "widths",
       .type = OptionType::object,
       .meaning = "width schedule, {\"0\": 2048, \"1\": 512}; null: halvings from n to k, spread over the layers",
       .optional = true});
  return specs;
}

const RegisterEncoder registration({
    {.name = "pyramidion",
     .description = "blockwise attention, pooling after each layer",
     .source = "arXiv 2009.05169, section 3",
     .options = options()},
    [](EncoderRequest request, const Options& options) {
      apply_pooling_options(request, options);
      request.base.attention = blockwise_attention(request.chunk);
      request.base.widths = options.has("widths")
                                ? explicit_widths(options.raw("widths"))
                                : halving_schedule(request.source_length, request.pooled_length, request.base.layers);
      return request.base;
    },
});

}  // namespace
}  // namespace transpool
