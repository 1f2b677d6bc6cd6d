#pragma once

#include "operators/pooling/launching.cuh"
#include "operators/pooling/row_access.cuh"
#include "operators/pooling/soft_topk_cuda.h"
#include "operators/pooling/warp.cuh"

namespace transpool {
namespace {

constexpr int chunk = soft_topk_chunk;
/// Logarithm of a share of a row that no sum in float64 shows.
constexpr double invisible = -50;

__device__ inline int valid_rows(const SoftTopkArguments& a, std::int64_t b) {
  return static_cast<int>(a.lengths ? max(std::int64_t{0}, min(a.lengths[b], a.length)) : a.length);
}

__device__ inline int targets_of(const SoftTopkArguments& a) { return static_cast<int>(a.targets); }
__device__ inline int chunks_of(const SoftTopkArguments& a) { return static_cast<int>((a.length + chunk - 1) / chunk); }

__device__ inline double height_of(const SoftTopkArguments& a, int target) {
  return static_cast<double>(a.targets - 1 - target);
}

/// A rank's row. Two numbers keep the shares' sum at 1 however large the logits are.
struct Row {
  double level, most, log_sum;

  __device__ double logit(double height, double potential) const { return fma(level, height, potential); }
  __device__ double log_share(double height, double potential) const { return logit(height, potential) - most - log_sum; }
};

/// None of its shares is visible.
__device__ inline Row no_row() { return {0, 1.7e308, 0}; }

__device__ inline Row row_of(const SoftTopkArguments& a, std::int64_t b, std::int64_t rank) {
  const auto norm = reinterpret_cast<const double2*>(a.norms)[b * a.length + rank];
  return {a.levels[b * a.length + rank], norm.x, norm.y};
}

/// The same order of additions in every run.
template <int Threads>
__device__ double sum_over_block(double value) {
  __shared__ double of_warps[Threads / lanes];
  __syncthreads();
  value = sum_over_warp(value);
  if (threadIdx.x % lanes == 0) of_warps[threadIdx.x / lanes] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < Threads / lanes; ++warp) value += of_warps[warp];
  return value;
}

inline unsigned blocks_for(std::int64_t count, std::int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace
}  // namespace transpool
