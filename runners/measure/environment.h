#pragma once

#include "operators/error.h"

namespace transpool {

/// What a report says of the machine and the build: versions, flags, processor, threads, device with clocks and throttle
/// reasons. No host or user names.
Json describe_environment(const std::string& device);

/// A short key for an environment, to refer to it from records.
std::string environment_key(const Json& environment);

}  // namespace transpool
