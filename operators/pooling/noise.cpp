#include "operators/pooling/noise.h"

#include <ATen/Context.h>

namespace transpool {

OptionSpec seed_option() {
  return {.name = "seed",
          .type = OptionType::integer,
          .fallback = nullptr,
          .meaning = "of the noise, the same in each call; null: torch's own generator, new noise in each call",
          .minimum = 0,
          .optional = true};
}

std::optional<at::Generator> noise_generator(const Options& options, const at::Device& device) {
  if (!options.has("seed")) return std::nullopt;
  auto generator = at::globalContext().defaultGenerator(device).clone();
  generator.set_current_seed(static_cast<std::uint64_t>(options.integer("seed")));
  return generator;
}

}  // namespace transpool
