#include "models/encoders/encoder_variant.h"

namespace transpool {
namespace {

std::vector<OptionSpec> options() {
  auto specs = pooling_encoder_options();
  specs.push_back(widths_option("halvings from n to k, spread over the layers"));
  return specs;
}

const RegisterEncoder registration({
    {.name = "pyramidion",
     .description = "blockwise attention, pooling after each layer",
     .source = "arXiv 2009.05169, Pyramidion",
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
