#include "operators/layout.h"

#include <fmt/format.h>

namespace transpool {

void check_layout(const std::string& noun, std::uint64_t given, std::uint64_t own) {
  if (given != own)
    throw std::logic_error(
        fmt::format("{} built against another version of transpool (layout {:016x}, this program's is {:016x}); "
                    "build it against this version of transpool and its LibTorch",
                    noun, given, own));
}

}  // namespace transpool
