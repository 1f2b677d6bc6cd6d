#pragma once

#include "operators/pooling/row_gather_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace transpool::row_gather {

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

constexpr int threads_per_block = 128;
/// Accesses that a thread has under way at once.
constexpr int in_flight = 4;

/// `threads_per_row` threads an output row.
template <class T, int V, int threads_per_row>
__global__ void forward_kernel(RowGatherArguments a) {
  using Sum = typename Accumulator<T>::type;
  using Access = Pack<T, V>;
  const std::int64_t slot =
      static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / threads_per_row) + threadIdx.x / threads_per_row;
  if (slot >= a.batch * a.slots) return;
  const int lane = threadIdx.x % threads_per_row;
  cudaGridDependencySynchronize();
  const std::int64_t row = a.positions[slot];
  const auto gate = a.gates ? static_cast<Sum>(static_cast<T>(a.gates[slot])) : Sum(1);
  const auto* source = static_cast<const T*>(a.x) + (slot / a.slots * a.length + max(row, std::int64_t{0})) * a.width;
  auto* out = static_cast<T*>(a.out) + slot * a.width;
  for (std::int64_t base = lane * V; base < a.width; base += in_flight * threads_per_row * V) {
    Access access[in_flight] = {};
#pragma unroll
    for (int j = 0; j < in_flight; ++j) {
      const auto column = base + j * threads_per_row * V;
      if (row >= 0 && column < a.width) access[j] = *reinterpret_cast<const Access*>(source + column);
    }
#pragma unroll
    for (int j = 0; j < in_flight; ++j) {
      const auto column = base + j * threads_per_row * V;
      if (column >= a.width) break;
      if (a.gates)
#pragma unroll
        for (int v = 0; v < V; ++v) access[j].element[v] = static_cast<T>(gate * static_cast<Sum>(access[j].element[v]));
      *reinterpret_cast<Access*>(out + column) = access[j];
    }
  }
}

__device__ inline double score_gradient_of(double kept_gradient, double score, double dot) {
  if (isnan(score)) return 0;
  return kept_gradient + (isfinite(score) ? dot : 0);
}

template <class S>
__device__ void write_score_gradient(const RowGatherArguments& a, std::int64_t slot, std::int64_t place, double dot) {
  const double kept = a.kept_gradient ? static_cast<double>(static_cast<const S*>(a.kept_gradient)[slot]) : 0;
  const double score = static_cast<const S*>(a.scores)[place];
  static_cast<S*>(a.score_gradient)[place] = static_cast<S>(score_gradient_of(kept, score, dot));
}

/// One warp an output row.
template <class T, int V>
__global__ void backward_kernel(RowGatherArguments a) {
  using Sum = typename Accumulator<T>::type;
  using Access = Pack<T, V>;
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (slot >= a.batch * a.slots) return;
  const int lane = threadIdx.x % 32;
  const std::int64_t row = a.positions[slot];
  if (row < 0) {
    if (lane == 0 && a.dots) a.dots[slot] = 0;
    return;
  }
  const bool wants_dot = a.dots || a.score_gradient;
  const std::int64_t place = slot / a.slots * a.length + row;
  const auto gate = a.gates ? static_cast<Sum>(static_cast<T>(a.gates[slot])) : Sum(1);
  const auto* source = static_cast<const T*>(a.x) + place * a.width;
  const auto* gradient = static_cast<const T*>(a.out_gradient) + slot * a.width;
  auto* x_gradient = static_cast<T*>(a.x_gradient) + place * a.width;
  Sum dot = 0;
#pragma unroll 4
  for (std::int64_t column = lane * V; column < a.width; column += 32 * V) {
    auto access = *reinterpret_cast<const Access*>(gradient + column);
    if (wants_dot) {
      const auto from_x = *reinterpret_cast<const Access*>(source + column);
#pragma unroll
      for (int v = 0; v < V; ++v) dot += static_cast<Sum>(access.element[v]) * static_cast<Sum>(from_x.element[v]);
    }
    if (!a.x_gradient) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) access.element[v] = static_cast<T>(gate * static_cast<Sum>(access.element[v]));
    *reinterpret_cast<Access*>(x_gradient + column) = access;
  }
  for (int step = 16; step > 0; step /= 2) dot += __shfl_down_sync(0xffffffffu, dot, step);
  if (lane > 0) return;
  if (a.dots) a.dots[slot] = dot;
  if (a.score_gradient && a.float64_scores) write_score_gradient<double>(a, slot, place, dot);
  if (a.score_gradient && !a.float64_scores) write_score_gradient<float>(a, slot, place, dot);
}

}  // namespace transpool::row_gather
