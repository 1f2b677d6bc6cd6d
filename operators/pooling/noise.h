#pragma once

#include "operators/options.h"
#include "operators/tensor.h"

#include <ATen/core/Generator.h>

namespace transpool {

/// The option `seed` of every stochastic operator: an integer, or null for torch's own generator.
OptionSpec seed_option();

/// A fresh generator of that device at the option's seed, so that each call draws the same; nothing (torch's own generator,
/// whose state goes on) where the option is null.
std::optional<at::Generator> noise_generator(const Options& options, const at::Device& device);

}  // namespace transpool
