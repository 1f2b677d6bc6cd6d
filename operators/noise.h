#pragma once

#include "operators/options.h"
#include "operators/tensor.h"

#include <ATen/core/Generator.h>

namespace transpool {

/// The option `seed` of whatever draws random numbers: an integer, or null for torch's own generator. `drawn` says what they
/// are for; `fallback` is an integer or null.
OptionSpec seed_option(const std::string& drawn = "noise", const Json& fallback = nullptr);

/// The value of the option `seed`; nothing where it is null.
std::optional<std::int64_t> seed_of(const Options& options);

/// A fresh generator of that device at the seed, so that each call draws the same; nothing (torch's own generator, whose
/// state goes on) without a seed.
std::optional<at::Generator> seeded_generator(const std::optional<std::int64_t>& seed, const at::Device& device);

/// The same for the option `seed`.
std::optional<at::Generator> noise_generator(const Options& options, const at::Device& device);

/// Standard normal numbers in float32 on the device of `like`, the same for a seed whatever the dtype of `like`. Draws of a
/// seed are kept for later calls: not to be written to.
at::Tensor seeded_normal(at::IntArrayRef shape, const at::Tensor& like, const std::optional<std::int64_t>& seed);

}  // namespace transpool
