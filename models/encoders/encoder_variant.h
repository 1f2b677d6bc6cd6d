#pragma once

#include "models/encoder.h"

namespace transpool {

/// What a named encoder starts from: the cell's own settings.
struct EncoderRequest {
  EncoderConfig base;              ///< layers and dimensions; attention, pooling and scorer as the cell sets them
  std::int64_t source_length = 0;  ///< n
  std::int64_t pooled_length = 0;  ///< k
  std::int64_t chunk = 0;          ///< m of blockwise attention
};

/// A named encoder is nothing but a way to fill in a configuration.
struct EncoderVariant : VariantInfo {
  std::function<EncoderConfig(EncoderRequest, const Options&)> configure = {};
};

Registry<EncoderVariant>& encoder_registry();

struct RegisterEncoder {
  explicit RegisterEncoder(EncoderVariant variant) { encoder_registry().add(std::move(variant)); }
};

/// Options that every encoder with pooling takes; null leaves the cell's setting in force.
std::vector<OptionSpec> pooling_encoder_options();

/// The one for the rows left, for encoders whose pooling operator is fixed.
OptionSpec pooled_length_option();

/// An attention operator under that name; null leaves the cell's `attention` in force.
OptionSpec attention_option(const std::string& name, const std::string& meaning);

/// A width schedule written out, {"0": 2048, "1": 512}; `otherwise` says what null does.
OptionSpec widths_option(const std::string& otherwise);

/// The value of `widths_option`. Throws UsageError.
std::map<std::int64_t, std::int64_t> explicit_widths(const Json& value);

/// The layers after which the length is halved, a list; `otherwise` says what null does.
OptionSpec halve_after_option(const std::string& otherwise);

/// Puts the given ones of `pooling_encoder_options` over the request.
void apply_pooling_options(EncoderRequest& request, const Options& options);

/// Blockwise attention with the request's chunk.
Json blockwise_attention(std::int64_t chunk);

/// n halved towards k over `layers` layers: the ceil(log2(n / k)) halvings are spread evenly, earlier layers first, and the
/// last layer leaves exactly k. 8192 -> 512 gives {0: 2048, 1: 512} in two layers.
std::map<std::int64_t, std::int64_t> halving_schedule(std::int64_t n, std::int64_t k, std::int64_t layers);

/// The same over those layers alone.
std::map<std::int64_t, std::int64_t> halving_schedule(std::int64_t n, std::int64_t k,
                                                      const std::vector<std::int64_t>& layers);

/// Which layers of n rows, k left and that many layers halve the length by default, ascending.
using HalvingLayers = std::vector<std::int64_t> (*)(std::int64_t n, std::int64_t k, std::int64_t layers);

/// The request's configuration, its length halved after the layers that the option `halve_after` names, else after the
/// default ones. Throws UsageError naming what is not a layer or comes twice.
EncoderConfig halved_after(const EncoderRequest& request, const Options& options, HalvingLayers by_default);

}  // namespace transpool
