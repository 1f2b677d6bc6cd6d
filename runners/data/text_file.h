#pragma once

#include "operators/error.h"

#include <filesystem>
#include <functional>

namespace transpool {

/// Calls `take(line, number)` for each line of a file, plain or compressed with gzip or xz (told by its first bytes),
/// until `take` returns false. Throws UsageError for a file that is missing (with the nearest name beside it) or cut off.
void for_lines(const std::filesystem::path& file,
               const std::function<bool(const std::string& line, std::int64_t number)>& take);

}  // namespace transpool
