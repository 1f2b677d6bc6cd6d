#include "models/encoders/encoder_variant.h"

namespace transpool {
namespace {

const RegisterEncoder registration({
    {.name = "vanilla",
     .description = "full attention, no pooling",
     .source = "arXiv 1706.03762, section 3.1",
     .options = {attention_option("attention", "attention operator")}},
    [](EncoderRequest request, const Options& options) {
      if (options.has("attention")) request.base.attention = options.raw("attention");
      request.base.widths.clear();
      return request.base;
    },
});

}  // namespace
}  // namespace transpool
