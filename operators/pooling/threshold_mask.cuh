#pragma once

#include "operators/pooling/row_selection.cuh"
#include "operators/pooling/threshold_mask_cuda.h"

namespace transpool {
namespace threshold_mask_kernel {

using namespace selection;

/// phi and phi' at one place.
struct Rise {
  double value, slope;

  __device__ Rise operator+(const Rise& other) const { return {value + other.value, slope + other.slope}; }
};

/// Each step costs float64 exponentials of all rows, so that more blocks than a selection alone takes pay off.
constexpr std::int64_t rows_per_block = 2048;

/// Newton steps square the error, bisections halve the bracket where a step would leave it or shrinks too slowly.
constexpr int most_steps = 64;

/// Values first, then slopes.
struct Sums {
  double warp[2][warps];
  double block[2][2];  ///< steps take turns, so that each needs one barrier of the cluster
  double total[2];
  double edge[2];
};

/// The sum over the warp, values in its first half, slopes in its second. Shuffles are what a sum over a block costs: this
/// takes half of those of two sums.
__device__ inline double sum_halves(const Rise& sum) {
  const bool upper = threadIdx.x & 16;
  double mine = (upper ? sum.slope : sum.value) + __shfl_xor_sync(all_lanes, upper ? sum.value : sum.slope, 16);
  for (int step = 8; step > 0; step /= 2) mine += __shfl_xor_sync(all_lanes, mine, step);
  return mine;
}

/// The sum over the threads of all blocks, always in the same order.
__device__ inline Rise sum_over_cluster(const Rise& sum, Sums& sums, int blocks, int turn) {
  auto cluster = cg::this_cluster();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = lane / 16;
  const double of_warp = sum_halves(sum);
  if (lane % 16 == 0) sums.warp[half][warp] = of_warp;
  __syncthreads();
  if (warp == 0) {
    const double of_block = sum_halves({sums.warp[0][lane], sums.warp[1][lane]});
    if (lane % 16 == 0) (blocks > 1 ? sums.block[turn] : sums.total)[half] = of_block;
  }
  if (blocks > 1) {
    sync_blocks(blocks);
    if (warp == 0) {
      double of_cluster = lane % 16 < blocks ? *cluster.map_shared_rank(&sums.block[turn][half], lane % 16) : 0;
      for (int step = most_blocks / 2; step > 0; step /= 2) of_cluster += __shfl_xor_sync(all_lanes, of_cluster, step);
      if (lane % 16 == 0) sums.total[half] = of_cluster;
    }
  }
  __syncthreads();
  return {sums.total[0], sums.total[1]};
}

/// A score as the masks take it.
template <class T>
__device__ double bounded(Key<T> key, double bound) {
  return min(max(static_cast<double>(score_of<T>(key)), -bound), bound);
}

/// The k-th bounded score and the next one, from what each thread saw.
template <class T>
__device__ void share_edge(Edge<Key<T>> edge, Sums& sums, Workspace<T>& w, int blocks) {
  auto cluster = cg::this_cluster();
  auto* found = reinterpret_cast<Key<T>*>(w.histogram);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto reduce = [](Edge<Key<T>> e) {
    for (int step = 16; step > 0; step /= 2) {
      e.lowest_kept = min(e.lowest_kept, __shfl_xor_sync(all_lanes, e.lowest_kept, step));
      e.highest_left = max(e.highest_left, __shfl_xor_sync(all_lanes, e.highest_left, step));
    }
    return e;
  };
  edge = reduce(edge);
  if (lane == 0) {
    found[2 + 2 * warp] = edge.lowest_kept;
    found[3 + 2 * warp] = edge.highest_left;
  }
  __syncthreads();
  if (warp == 0) {
    edge = reduce({found[2 + 2 * lane], found[3 + 2 * lane]});
    if (lane == 0) {
      found[0] = edge.lowest_kept;
      found[1] = edge.highest_left;
    }
  }
  sync_blocks(blocks);
  edge = {~Key<T>(0), 0};
  if (lane < blocks) {
    const auto* there = cluster.map_shared_rank(found, lane);
    edge = {there[0], there[1]};
  }
  edge = reduce(edge);
  if (threadIdx.x == 0) {
    sums.edge[0] = static_cast<double>(score_of<T>(edge.lowest_kept));
    sums.edge[1] = static_cast<double>(score_of<T>(edge.highest_left));
  }
  __syncthreads();
}

struct Solution {
  double kth, threshold, slope;  ///< slope 0: hard masks
};

/// tau / T relative to the k-th score, with sum phi = k.
template <class Phi, class T>
__device__ Solution solve(const ThresholdMaskArguments& a, const Segment<T>& s, Sums& sums) {
  const double kth = min(max(sums.edge[0], -a.bound), a.bound);
  const double next = min(max(sums.edge[1], -a.bound), a.bound);
  if (s.valid <= a.rows.slots || next <= kth - a.hard_gap) return {kth, 0, 0};
  double low = -a.one, high = (next - kth) / a.temperature - a.zero;
  double threshold = min((low + high) / 2, 0.0), slope = 0;
  double last = high - low, before_last = last;
  const double per_temperature = 1 / a.temperature;
  const auto goal = static_cast<double>(a.rows.slots);
  for (int step = 0; step < most_steps; ++step) {
    Rise sum = {0, 0};
    for (int i = threadIdx.x; i < s.mine; i += threads)
      sum = sum + Phi::at((bounded<T>(s.key(i), a.bound) - kth) * per_temperature - threshold);
    sum = sum_over_cluster(sum, sums, s.blocks, step & 1);
    slope = sum.slope;
    const double excess = sum.value - goal;
    (excess > 0 ? low : high) = threshold;
    const double newton = excess / slope;
    const bool good = threshold + newton >= low && threshold + newton <= high && 2 * abs(newton) <= before_last;
    const double move = good ? newton : (low + high) / 2 - threshold;
    if (abs(move) <= 1e-15 * (1 + abs(threshold)) || abs(excess) <= 4e-16 * goal) break;
    before_last = last;
    last = abs(move);
    threshold += move;
  }
  const double least_kept = Phi::at(-threshold).value, most_left = Phi::at((next - kth) * per_temperature - threshold).value;
  if (1 - least_kept < nearly_hard && most_left < nearly_hard) return {kth, 0, 0};
  return {kth, threshold, slope};
}

template <class T>
__device__ double place_of(const ThresholdMaskArguments& a, T score, const Solution& solution) {
  return (bounded<T>(key_of(score), a.bound) - solution.kth) * (1 / a.temperature) - solution.threshold;
}

template <class T, class Phi>
__global__ void __launch_bounds__(threads) forward_kernel(ThresholdMaskArguments a, std::size_t cached) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Workspace<T> workspace;
  __shared__ Sums sums;
  cudaTriggerProgrammaticLaunchCompletion();
  const auto& rows = a.rows;
  const auto segment = load_segment<T>(rows, cached ? reinterpret_cast<Key<T>*>(memory) : nullptr);
  share_edge<T>(select_and_write(rows, segment, workspace, memory + cached), sums, workspace, segment.blocks);
  const auto solution = solve<Phi>(a, segment, sums);
  if (segment.block == 0 && threadIdx.x == 0) {
    a.solution[3 * segment.batch] = solution.kth;
    a.solution[3 * segment.batch + 1] = solution.threshold;
    a.solution[3 * segment.batch + 2] = solution.slope;
  }
  const bool hard = solution.slope == 0;
  for (int i = segment.block * threads + threadIdx.x; i < rows.slots; i += segment.blocks * threads) {
    const auto slot = segment.batch * rows.slots + i;
    const double mask = hard ? 1 : Phi::at(place_of(a, static_cast<const T*>(rows.kept)[slot], solution)).value;
    a.gates[slot] = rows.positions[slot] < 0 ? 0 : mask;
  }
  sync_blocks(segment.blocks);
}

constexpr int backward_threads = 256;
constexpr int most_chunks = 16;
constexpr std::int64_t least_chunk = 1024;

/// The mean gate gradient, weighted by phi'. Each block of a batch row computes it anew.
template <class T, class Phi>
__device__ double mean_gradient(const ThresholdMaskArguments& a, const Solution& solution, std::int64_t batch) {
  constexpr int warps_here = backward_threads / 32;
  __shared__ double warp_sum[warps_here];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto* scores = static_cast<const T*>(a.rows.scores) + batch * a.rows.length;
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < a.rows.slots; i += backward_threads) {
    const auto slot = batch * a.rows.slots + i;
    const auto position = a.rows.positions[slot];
    if (position >= 0) sum += Phi::at(place_of(a, scores[position], solution)).slope * a.gate_gradient[slot];
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(all_lanes, sum, step);
  if (lane == 0) warp_sum[warp] = sum;
  __syncthreads();
  double total = 0;
  for (const double of_warp : warp_sum) total += of_warp;
  return total / solution.slope;
}

/// A chunk of one batch row's score gradients: first as if no row were kept, then those of the kept rows in it.
template <class T, class Phi>
__global__ void __launch_bounds__(backward_threads) backward_kernel(ThresholdMaskArguments a, std::int64_t chunk) {
  const std::int64_t chunks = (a.rows.length + chunk - 1) / chunk, batch = blockIdx.x / chunks;
  const std::int64_t first = blockIdx.x % chunks * chunk, end = min(first + chunk, a.rows.length);
  const Solution solution = {a.solution[3 * batch], a.solution[3 * batch + 1], a.solution[3 * batch + 2]};
  const bool hard = solution.slope == 0;
  const auto* scores = static_cast<const T*>(a.rows.scores) + batch * a.rows.length;
  auto* score_gradient = static_cast<T*>(a.score_gradient) + batch * a.rows.length;
  const auto valid = a.rows.lengths ? a.rows.lengths[batch] : a.rows.length;
  const double mean = hard ? 0 : mean_gradient<T, Phi>(a, solution, batch);
  const auto through_mask = [&](T score, double gate_gradient) {
    if (hard || !(abs(static_cast<double>(score)) <= a.bound)) return 0.0;
    return Phi::at(place_of(a, score, solution)).slope * (gate_gradient - mean) / a.temperature;
  };
  for (std::int64_t i = first + threadIdx.x; i < end; i += backward_threads)
    score_gradient[i] = i < valid ? static_cast<T>(through_mask(scores[i], 0)) : T(0);
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < a.rows.slots; i += backward_threads) {
    const auto slot = batch * a.rows.slots + i;
    const auto position = a.rows.positions[slot];
    if (position < first || position >= end) continue;
    const auto score = scores[position];
    const double kept = isnan(score) ? 0 : static_cast<double>(static_cast<const T*>(a.kept_gradient)[slot]);
    score_gradient[position] = static_cast<T>(kept + through_mask(score, a.gate_gradient[slot]));
  }
}

template <class T, class Phi>
const char* launch_forward(const ThresholdMaskArguments& a, cudaStream_t stream) {
  const auto launch = launch_for(a.rows, rows_per_block);
  return text_of(launch_cluster(forward_kernel<T, Phi>, launch, a.rows.batch, stream, a, launch.cached));
}

template <class T, class Phi>
const char* launch_backward(const ThresholdMaskArguments& a, cudaStream_t stream) {
  const auto chunk = std::max(least_chunk, (a.rows.length + most_chunks - 1) / most_chunks);
  const auto blocks = static_cast<unsigned>((a.rows.length + chunk - 1) / chunk * a.rows.batch);
  backward_kernel<T, Phi><<<blocks, backward_threads, 0, stream>>>(a, chunk);
  return text_of(cudaGetLastError());
}

}  // namespace threshold_mask_kernel

/// Makes `Phi` the device form of the member `name`: static __device__ Rise at(double z) gives phi and phi' where the
/// member's MaskFunction does, z of -inf left out.
template <class Phi>
struct RegisterThresholdMaskKernel {
  explicit RegisterThresholdMaskKernel(const char* name) { threshold_mask_kernels()[name] = {forward, backward}; }

 private:
  static const char* forward(const ThresholdMaskArguments& a, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return a.rows.float64_scores ? threshold_mask_kernel::launch_forward<double, Phi>(a, cuda_stream)
                                 : threshold_mask_kernel::launch_forward<float, Phi>(a, cuda_stream);
  }

  static const char* backward(const ThresholdMaskArguments& a, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return a.rows.float64_scores ? threshold_mask_kernel::launch_backward<double, Phi>(a, cuda_stream)
                                 : threshold_mask_kernel::launch_backward<float, Phi>(a, cuda_stream);
  }
};

}  // namespace transpool
