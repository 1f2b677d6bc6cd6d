#include "operators/noise.h"

#include <ATen/Context.h>

namespace transpool {

OptionSpec seed_option(const std::string& drawn, const Json& fallback) {
  return {
      .name = "seed",
      .type = OptionType::integer,
      .fallback = fallback,
      .meaning = "of the " + drawn + ", the same in each call; null: torch's own generator, which draws anew in each call",
      .minimum = 0,
      .optional = true};
}

std::optional<std::int64_t> seed_of(const Options& options) {
  if (!options.has("seed")) return std::nullopt;
  return options.integer("seed");
}

std::optional<at::Generator> seeded_generator(const std::optional<std::int64_t>& seed, const at::Device& device) {
  if (!seed) return std::nullopt;
  auto generator = at::globalContext().defaultGenerator(device).clone();
  generator.set_current_seed(static_cast<std::uint64_t>(*seed));
  return generator;
}

std::optional<at::Generator> noise_generator(const Options& options, const at::Device& device) {
  return seeded_generator(seed_of(options), device);
}

at::Tensor seeded_normal(at::IntArrayRef shape, const at::Tensor& like, const std::optional<std::int64_t>& seed) {
  return at::randn(shape, seeded_generator(seed, like.device()), like.options().dtype(at::kFloat));
}

}  // namespace transpool
