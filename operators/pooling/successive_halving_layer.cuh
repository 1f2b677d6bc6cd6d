#pragma once

#include "operators/pooling/successive_halving.cuh"
#include "operators/pooling/successive_halving_layer_cuda.h"

namespace transpool {

/// An element of a row of T as it reads after a cast to a type of less precision and back.
template <class T, class Sum>
__device__ Sum rounded(Sum value, Element to) {
  if constexpr (std::is_same_v<T, float>) {
    if (to == Element::bfloat16) return __bfloat162float(__float2bfloat16_rn(value));
    if (to == Element::float16) return __half2float(__float2half_rn(value));
  }
  return value;
}

template <class Sum>
__device__ Sum element_at(const void* elements, Element type, std::int64_t i) {
  switch (type) {
    case Element::float64: return static_cast<Sum>(static_cast<const double*>(elements)[i]);
    case Element::float32: return static_cast<Sum>(static_cast<const float*>(elements)[i]);
    case Element::float16: return static_cast<Sum>(__half2float(static_cast<const __half*>(elements)[i]));
    default: return static_cast<Sum>(__bfloat162float(static_cast<const __nv_bfloat16*>(elements)[i]));
  }
}

/// What the loss gains from a unit of logit: d score / d logit times `gain`, the gradient of the score.
template <class Sum>
__device__ Sum logit_gain(Sum score, float floor, Sum gain) {
  const Sum share = min(max(score - static_cast<Sum>(floor), Sum(0)), Sum(1));
  return gain * share * (1 - share);
}

}  // namespace transpool
