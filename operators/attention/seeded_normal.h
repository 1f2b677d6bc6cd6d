#pragma once

#include "operators/options.h"
#include "operators/tensor.h"

namespace transpool {

/// The option `seed` of an operator that draws random numbers; `fallback` an integer or null.
OptionSpec normal_seed_option(const Json& fallback);

/// The value of `seed`; nothing where it is null.
std::optional<std::int64_t> normal_seed(const Options& options);

/// Standard normal numbers in float32 on the device of `like`: the same each call for a seed, whatever the dtype of `like`,
/// else from torch's global generator. Draws of a seed are kept for later calls: not to be written to.
at::Tensor seeded_normal(at::IntArrayRef shape, const at::Tensor& like, const std::optional<std::int64_t>& seed);

}  // namespace transpool
