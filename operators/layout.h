#pragma once

#include "operators/registry.h"

namespace transpool {

/// To be raised with every change that no size shows: of virtual functions, or of members that trade places.
constexpr std::uint64_t interface_version = 1;

/// FNV-1a of the interface version and the sizes of `Types`: a file that was compiled against other definitions of them has
/// another value.
template <class... Types>
constexpr std::uint64_t layout_tag() {
  std::uint64_t hash = 14695981039346656037u;
  for (const std::uint64_t part : {interface_version, std::uint64_t{sizeof(Types)}...})
    hash = (hash ^ part) * 1099511628211u;
  return hash;
}

/// Throws std::logic_error unless the two tags agree: what registers a `noun` was built against another version.
void check_layout(const std::string& noun, std::uint64_t given, std::uint64_t own);

}  // namespace transpool
