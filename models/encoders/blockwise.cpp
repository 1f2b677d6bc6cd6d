#include "models/encoders/encoder_variant.h"

namespace transpool {
namespace {

const RegisterEncoder registration({
    {.name = "blockwise",
     .description = "attention within chunks, no pooling: the paper's baseline",
     .source = "arXiv 2009.05169, blockwise baseline",
     .options = {{.name = "chunk",
                  .type = OptionType::integer,
                  .meaning = "rows of one chunk, m; null: the cell's `chunk`",
                  .minimum = 1,
                  .optional = true}}},
    [](EncoderRequest request, const Options& options) {
      request.base.attention = blockwise_attention(options.has("chunk") ? options.integer("chunk") : request.chunk);
      request.base.widths.clear();
      return request.base;
    },
});

}  // namespace
}  // namespace transpool
