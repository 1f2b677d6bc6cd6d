#pragma once

#include "operators/element.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

namespace transpool {

/// What sums of T are taken in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

/// V elements moved by one access.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T element[V];
};

/// launch<T, V>() for rows of `width` elements: V fills 16 bytes where the width and the addresses (null counts as aligned)
/// allow it, else it is 1.
template <class T, class Launch>
void by_access(std::int64_t width, std::initializer_list<const void*> pointers, Launch launch) {
  constexpr int V = 16 / sizeof(T);
  bool aligned = width % V == 0;
  for (const void* pointer : pointers) aligned = aligned && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  if (aligned) launch.template operator()<T, V>();
  else launch.template operator()<T, 1>();
}

/// The same for the element type of the rows. Returns the CUDA error text of the launch, or nullptr.
template <class Launch>
const char* by_access(Element element, std::int64_t width, std::initializer_list<const void*> pointers, Launch launch) {
  switch (element) {
    case Element::float64: by_access<double>(width, pointers, launch); break;
    case Element::float32: by_access<float>(width, pointers, launch); break;
    case Element::float16: by_access<__half>(width, pointers, launch); break;
    case Element::bfloat16: by_access<__nv_bfloat16>(width, pointers, launch); break;
  }
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace transpool
