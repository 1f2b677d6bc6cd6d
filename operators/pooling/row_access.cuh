#pragma once

#include "operators/element.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

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

/// A pack as it was read. Of half-precision elements the compiler would keep each in a register of its own.
template <class T, int V>
struct RawPack {
  using Sum = typename Accumulator<T>::type;
  static constexpr bool halves = sizeof(T) == 2 && V > 1;
  using Word = std::conditional_t<halves, unsigned, T>;
  static constexpr int words = halves ? V / 2 : V;
  Word word[words] = {};

  __device__ void read(const T* from) {
    const auto read = *reinterpret_cast<const Pack<Word, words>*>(from);
#pragma unroll
    for (int w = 0; w < words; ++w) word[w] = read.element[w];
  }

  __device__ Sum at(int v) const {
    if constexpr (!halves) {
      return static_cast<Sum>(word[v]);
    } else {
      const unsigned two = word[v / 2];
      if constexpr (std::is_same_v<T, __nv_bfloat16>) return __uint_as_float(v % 2 ? two & 0xffff0000u : two << 16);
      else return __half2float(__ushort_as_half(static_cast<unsigned short>(v % 2 ? two >> 16 : two)));
    }
  }
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
