#include "operators/attention/seeded_normal.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>

namespace transpool {

OptionSpec normal_seed_option(const Json& fallback) {
  return {.name = "seed",
          .type = OptionType::integer,
          .fallback = fallback,
          .meaning = "of the random projections, the same in each call; null: torch's own generator, new ones in each call",
          .minimum = 0,
          .optional = true};
}

std::optional<std::int64_t> normal_seed(const Options& options) {
  if (!options.has("seed")) return std::nullopt;
  return options.integer("seed");
}

at::Tensor seeded_normal(at::IntArrayRef shape, const at::Tensor& like, const std::optional<std::int64_t>& seed) {
  const auto options = like.options().dtype(at::kFloat);
  if (!seed) return at::randn(shape, options);
  auto generator = at::globalContext().defaultGenerator(like.device()).clone();
  generator.set_current_seed(static_cast<std::uint64_t>(*seed));
  return at::randn(shape, generator, options);
}

}  // namespace transpool
