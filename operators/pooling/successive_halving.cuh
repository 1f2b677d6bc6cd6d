#pragma once

#include "operators/pooling/row_access.cuh"
#include "operators/pooling/successive_halving_cuda.h"

namespace transpool {

/// Which source row an output mixes, and how much of it; ~row where it is not valid.
template <class Weight>
struct alignas(2 * sizeof(Weight)) Leaf {
  std::int32_t row;
  Weight weight;
};

__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

__device__ inline double finite_or_zero(double value) { return isfinite(value) ? value : 0.0; }

/// B^s for log2 B.
__device__ inline double power(double log2_base, double score) { return exp2(log2_base * score); }

/// softmax(B^a, B^b)[0] for a >= b; equal scores share evenly, a score of -inf gives all away.
__device__ inline double stronger_share(double a, double b, double log2_base) {
  if (a == b) return 0.5;
  const double lead = power(log2_base, a) - power(log2_base, b);
  if (b == -infinity() || isnan(lead)) return 1;
  return 1 / (1 + exp(-lead));
}

/// w s_a + (1 - w) s_b, where an infinite score with all the weight stays itself.
__device__ inline double mixed_score(double a, double b, double share) {
  return share == 1 || a == b ? a : share * a + (1 - share) * b;
}

template <class Sum>
__device__ Sum sum_in_warp(Sum value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

/// Weights below this are left out of an output: the largest of epsilon, epsilon / 2, ... below which they sum to no more
/// than epsilon. Called by a whole warp.
template <class Sum>
__device__ Sum least_weight(const Leaf<Sum>* leaf, std::int64_t leaves, double epsilon) {
  if (epsilon <= 0) return 0;
  Sum least = static_cast<Sum>(epsilon);
  while (true) {
    Sum left_out = 0;
    for (std::int64_t c = threadIdx.x % 32; c < leaves; c += 32)
      left_out += leaf[c].weight < least ? leaf[c].weight : Sum(0);
    if (sum_in_warp(left_out) <= static_cast<Sum>(epsilon)) return least;
    least /= 2;
  }
}

}  // namespace transpool
