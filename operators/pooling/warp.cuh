#pragma once

#include <cuda_runtime.h>

namespace transpool {
namespace {

constexpr int lanes = 32;
constexpr unsigned every_lane = 0xffffffffu;

/// In every lane, by the same order of additions in every run.
template <class C>
__device__ C sum_over_warp(C value) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(every_lane, value, step);
  return value;
}

}  // namespace
}  // namespace transpool
