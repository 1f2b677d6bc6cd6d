#include "models/encoders/encoder_variant.h"

namespace transpool {
namespace {

OptionSpec dimension(const std::string& name, const std::string& meaning) {
  return {
      .name = name, .type = OptionType::integer, .meaning = meaning + "; null: the model's", .minimum = 1, .optional = true};
}

std::vector<OptionSpec> options() {
  auto specs = pooling_encoder_options();
  std::erase_if(specs, [](const OptionSpec& spec) { return spec.name == "chunk"; });
  specs.push_back(attention_option("attention", "attention operator of the task encoder"));
  specs.push_back(attention_option("pruner_attention", "attention operator of the pruner"));
  specs.push_back({.name = "pruner_layers",
                   .type = OptionType::integer,
                   .fallback = 1,
                   .meaning = "layers of the pruner",
                   .minimum = 1});
  specs.push_back(dimension("pruner_width", "width of the pruner"));
  specs.push_back(dimension("pruner_heads", "heads of the pruner"));
  specs.push_back(dimension("pruner_feed_forward", "feed-forward width of the pruner"));
  return specs;
}

const RegisterEncoder registration({
    {.name = "pruner",
     .description = "a small Transformer scores the source, its top k rows go to a full Transformer; trained jointly",
     .source = "arXiv 2106.00479, DoT; scores act through the pooling operator, not the task's attention",
     .options = options()},
    [](EncoderRequest request, const Options& options) {
      apply_pooling_options(request, options);
      auto& base = request.base;
      base.widths.clear();
      auto pruner = base;
      pruner.layers = options.integer("pruner_layers");
      if (options.has("pruner_attention")) pruner.attention = options.raw("pruner_attention");
      if (options.has("pruner_width")) pruner.layer.width = options.integer("pruner_width");
      if (options.has("pruner_heads")) pruner.layer.heads = options.integer("pruner_heads");
      if (options.has("pruner_feed_forward")) pruner.layer.feed_forward = options.integer("pruner_feed_forward");
      pruner.widths = {{pruner.layers - 1, request.pooled_length}};
      if (options.has("attention")) base.attention = options.raw("attention");
      base.pruner = std::make_shared<const EncoderConfig>(pruner);
      return base;
    },
});

}  // namespace
}  // namespace transpool
