#pragma once

#include <cstdint>

namespace transpool {

/// The dtypes that kernels take, for headers that know no tensors.
enum class Element { float64, float32, float16, bfloat16 };

constexpr std::int64_t element_bytes(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

}  // namespace transpool
