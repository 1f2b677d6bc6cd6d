#include "models/encoders/encoder_variant.h"

namespace transpool {
namespace {

const RegisterEncoder registration({
    {.name = "vanilla",
     .description = "full attention, no pooling",
     .source = "arXiv 1706.03762",
     .options = {{.name = "attention",
                  .type = OptionType::variant,
                  .meaning = "attention operator; null: the cell's `attention`",
                  .variant_kind = "attention",
                  .optional = true}}},
    [](EncoderRequest request, const Options& options) {
      if (options.has("attention")) request.base.attention = options.raw("attention");
      request.base.widths.clear();
      return request.base;
    },
});

}  // namespace
}  // namespace transpool
