#pragma once

#include "operators/error.h"

#include <ATen/ATen.h>

namespace transpool {

/// "cpu" or "cuda" -> device. Throws UsageError where it is unknown or not there, saying what this machine has.
at::Device device_from_name(const std::string& name);

/// Waits for all queued work; nothing to do on the CPU.
void synchronize(const at::Device& device);

}  // namespace transpool
