#include "models/encoders/encoder_variant.h"

#include "operators/pooling/tournament.h"

#include <numeric>

namespace transpool {
namespace {

/// The first layers, one for each halving: every layer then costs half of the one before until k rows are left.
std::vector<std::int64_t> first_layers(std::int64_t n, std::int64_t k, std::int64_t layers) {
  std::vector<std::int64_t> first(static_cast<std::size_t>(std::min(layers, tournament_rounds(n, k))));
  std::iota(first.begin(), first.end(), 0);
  return first;
}

std::vector<OptionSpec> options() {
  auto specs = pooling_encoder_options();
  specs.push_back({.name = "layers",
                   .type = OptionType::integer,
                   .fallback = 6,
                   .meaning = "encoder layers, whatever the cell's `layers`; the paper's decoder has 6 too",
                   .minimum = 1});
  specs.push_back(halve_after_option("the first layers, as many as there are halvings from n to k"));
  return specs;
}

const RegisterEncoder registration({
    {.name = "deep_pyramidion",
     .description = "pyramidion of 6 layers that halves the length after chosen ones: 8192 to 512 after the first four",
     .source = "arXiv 2009.05169, DeepPyramidion",
     .options = options()},
    [](EncoderRequest request, const Options& options) {
      apply_pooling_options(request, options);
      request.base.layers = options.integer("layers");
      request.base.attention = blockwise_attention(request.chunk);
      return halved_after(request, options, first_layers);
    },
});

}  // namespace
}  // namespace transpool
