#pragma once

#include <string>
#include <vector>

namespace transpool::cli {

/// Loads shared libraries that register variants of their own. Throws UsageError naming the file and the loader's reason.
void load_plugins(const std::vector<std::string>& files);

}  // namespace transpool::cli
