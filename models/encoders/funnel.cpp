#include "models/encoders/encoder_variant.h"

#include "operators/pooling/tournament.h"

namespace transpool {
namespace {

/// The last layer of every block but the last, where h halvings cut the layers into h + 1 blocks of equal size; all layers
/// where they are too few for that.
std::vector<std::int64_t> block_ends(std::int64_t n, std::int64_t k, std::int64_t layers) {
  const auto halvings = tournament_rounds(n, k);
  std::vector<std::int64_t> ends;
  for (std::int64_t block = 1; block <= std::min(halvings, layers); ++block)
    ends.push_back(halvings < layers ? block * layers / (halvings + 1) - 1 : block - 1);
  return ends;
}

const RegisterEncoder registration({
    {.name = "funnel",
     .description = "full attention in blocks of layers, strided mean pooling by halves between them",
     .source = "arXiv 2006.03236, Funnel-Transformer",
     .options = {{.name = "pooling",
                  .type = OptionType::variant,
                  .fallback = "strided_mean",
                  .meaning = "pooling operator",
                  .variant_kind = "pooling"},
                 pooled_length_option(),
                 attention_option("attention", "attention operator"),
                 halve_after_option("the last layer of each block but the last, blocks of equal size")}},
    [](EncoderRequest request, const Options& options) {
      apply_pooling_options(request, options);
      if (options.has("attention")) request.base.attention = options.raw("attention");
      request.base.scorer = "position";  // strides read no scores
      return halved_after(request, options, block_ends);
    },
});

}  // namespace
}  // namespace transpool
