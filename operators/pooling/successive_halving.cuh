#pragma once

#include "operators/pooling/launching.cuh"
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

/// 2^f for |f| <= 1/2 to 4e-18 of it: constants that instructions read where they stand.
__constant__ double exp2_terms[] = {0x1.0000000000000p+0,  0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5aep-3,
                                    0x1.c6b08d704a0c6p-5,  0x1.3b2ab6fb9f1a5p-7,  0x1.5d87fe78a3f9cp-10,
                                    0x1.430913112c61bp-13, 0x1.ffcbfc6da6ed1p-17, 0x1.62bfc2c86d700p-20,
                                    0x1.b524ebd13a55fp-24, 0x1.e6228acd1c6e5p-28, 0x1.e9ec1fcb69a7fp-32};

/// 2^x to its last bits, for |x| < 1022, in a third of the instructions of exp2.
__device__ inline double short_exp2(double x) {
  constexpr double rounding = 0x1.8p52;
  const double shifted = x + rounding;
  const double f = x - (shifted - rounding);
  double sum = exp2_terms[11];
#pragma unroll
  for (int i = 10; i >= 0; --i) sum = fma(sum, f, exp2_terms[i]);
  return __hiloint2double(__double2hiint(sum) + (__double2loint(shifted) << 20), __double2loint(sum));
}

/// Whether 2^x is a normal number.
__device__ inline bool is_moderate(double x) {
  constexpr int high_of_1022 = 0x408ff000;
  return (__double2hiint(x) & 0x7fffffff) < high_of_1022;
}

/// 1 / x for x from 1 to 2^1021.
__device__ inline double short_reciprocal(double x) {
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(x));
  r = fma(fma(-x, r, 1.0), r, r);
  return fma(fma(-x, r, 1.0), r, r);
}

/// softmax(B^a, B^b) for a >= b; equal scores share evenly, a score of -inf gives all away; and the score of the two.
struct Shares {
  double stronger, weaker, mixed;
};

/// Of scores whose powers of B are not numbers.
static __device__ __noinline__ Shares extreme_shares(double a, double b, double log2_base) {
  const double lead = exp2(log2_base * a) - exp2(log2_base * b);
  const double share = a == b ? 0.5 : b == -infinity() || isnan(lead) ? 1 : 1 / (1 + exp(-lead));
  return {share, 1 - share, share == 1 || a == b ? a : share * a + (1 - share) * b};
}

/// The meeting of the stronger and the weaker of two; who meets padding keeps all.
__device__ inline Shares shares_of(double a, double b, double log2_base, bool real = true) {
  constexpr double log2_e = 1.4426950408889634;
  const double x = log2_base * a, y = log2_base * b;
  if (!real) return {1, 0, a};
  if (!is_moderate(x) || !is_moderate(y)) return extreme_shares(a, b, log2_base);
  double exponent = -log2_e * (short_exp2(x) - short_exp2(y));
  // Scores are compared as float32: the stronger may be lower in its last bits.
  if (!is_moderate(exponent)) exponent = exponent > 0 ? 1021 : -1021;
  const double share = short_reciprocal(1 + short_exp2(exponent));
  return {share, 1 - share, share * a + (1 - share) * b};
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
  const std::int64_t lane = threadIdx.x % 32;
  const Sum first = lane < leaves ? leaf[lane].weight : Sum(0);
  Sum least = static_cast<Sum>(epsilon);
  while (true) {
    Sum left_out = first < least ? first : Sum(0);
    for (std::int64_t c = lane + 32; c < leaves; c += 32) left_out += leaf[c].weight < least ? leaf[c].weight : Sum(0);
    if (sum_in_warp(left_out) <= static_cast<Sum>(epsilon)) return least;
    least /= 2;
  }
}

}  // namespace transpool
