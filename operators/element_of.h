#pragma once

#include "operators/element.h"

#include <c10/core/ScalarType.h>

#include <optional>

namespace transpool {

/// Nothing for a dtype that kernels do not take.
inline std::optional<Element> element_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double: return Element::float64;
    case c10::ScalarType::Float: return Element::float32;
    case c10::ScalarType::Half: return Element::float16;
    case c10::ScalarType::BFloat16: return Element::bfloat16;
    default: return std::nullopt;
  }
}

}  // namespace transpool
