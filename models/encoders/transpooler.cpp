#include "models/encoders/encoder_variant.h"

namespace transpool {
namespace {

const RegisterEncoder registration({
    {.name = "transpooler",
     .description = "blockwise attention, one pooling after the last layer",
     .source = "arXiv 2009.05169, Transpooler",
     .options = pooling_encoder_options()},
    [](EncoderRequest request, const Options& options) {
      apply_pooling_options(request, options);
      request.base.attention = blockwise_attention(request.chunk);
      request.base.widths = {{request.base.layers - 1, request.pooled_length}};
      return request.base;
    },
});

}  // namespace
}  // namespace transpool
