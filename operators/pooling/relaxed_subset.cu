#include "operators/pooling/relaxed_subset_cuda.h"

#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace transpool {
namespace {

namespace cg = cooperative_groups;

constexpr int lanes = 32;
constexpr unsigned every_lane = 0xffffffffu;
constexpr int threads = 512;
constexpr int cluster_blocks = 8;  // the largest that every device of the architecture takes
constexpr int most_items = 8;      // columns a thread holds
constexpr int few_items = 4;       // as many before blocks are added: smaller clusters wait less, and all run at once
constexpr double floor_logit = -1e300;

/// Sums of several numbers over the cluster of one batch row, always in the same order. Blocks write into each other's
/// memory and wait once a call; calls take turns with two buffers, so that none is overwritten before all have read it.
template <int N>
struct Sums {
  double of[N];
};

template <int N>
__device__ Sums<N> sum_over_warp(Sums<N> own) {
  for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < N; ++i) own.of[i] += __shfl_xor_sync(every_lane, own.of[i], step);
  return own;
}

template <int N>
__device__ Sums<N> sum_over_block(Sums<N> own) {
  __shared__ Sums<N> of_warps[lanes];
  const int lane = threadIdx.x % lanes, warps = blockDim.x / lanes;
  own = sum_over_warp(own);
  if (lane == 0) of_warps[threadIdx.x / lanes] = own;
  __syncthreads();
  Sums<N> none = {};
  return sum_over_warp(lane < warps ? of_warps[lane] : none);
}

template <int N>
__device__ Sums<N> sum_over_cluster(Sums<N> own, int turn) {
  __shared__ Sums<N> of_blocks[2][cluster_blocks];
  auto cluster = cg::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  own = sum_over_block(own);
  if (threadIdx.x < static_cast<unsigned>(blocks))
    cluster.map_shared_rank(&of_blocks[turn][0], threadIdx.x)[cluster.block_rank()] = own;
  cluster.sync();
  Sums<N> all = {};
  for (int block = 0; block < blocks; ++block)
#pragma unroll
    for (int i = 0; i < N; ++i) all.of[i] += of_blocks[turn][block].of[i];
  return all;
}

/// The largest of some logits, the first row that has it, and the largest of all other rows.
struct Leaders {
  double first, second;
  int row;

  __device__ void take(const Leaders& other) {
    const bool ahead = first > other.first || (first == other.first && row <= other.row);
    second = ahead ? fmax(second, other.first) : fmax(first, other.second);
    if (ahead) return;
    first = other.first;
    row = other.row;
  }
};

__device__ Leaders leaders_of_warp(Leaders own) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    const Leaders other = {__shfl_xor_sync(every_lane, own.first, step), __shfl_xor_sync(every_lane, own.second, step),
                           __shfl_xor_sync(every_lane, own.row, step)};
    own.take(other);
  }
  return own;
}

constexpr int no_row = 0x7fffffff;
constexpr double nothing = -1.7e308;  // under the floor

__device__ Leaders leaders_of_block(Leaders own) {
  __shared__ Leaders of_warps[lanes];
  const int lane = threadIdx.x % lanes, warps = blockDim.x / lanes;
  own = leaders_of_warp(own);
  if (lane == 0) of_warps[threadIdx.x / lanes] = own;
  __syncthreads();
  const Leaders none = {nothing, nothing, no_row};
  return leaders_of_warp(lane < warps ? of_warps[lane] : none);
}

__device__ Leaders leaders_of_cluster(Leaders own, int turn) {
  __shared__ Leaders of_blocks[2][cluster_blocks];
  auto cluster = cg::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  own = leaders_of_block(own);
  if (threadIdx.x < static_cast<unsigned>(blocks))
    cluster.map_shared_rank(&of_blocks[turn][0], threadIdx.x)[cluster.block_rank()] = own;
  cluster.sync();
  own = of_blocks[turn][0];
  for (int block = 1; block < blocks; ++block) own.take(of_blocks[turn][block]);
  return own;
}

/// The columns of a thread: every so many of the batch row.
struct Columns {
  std::int64_t batch_row;
  int first, step, length;

  __device__ explicit Columns(const RelaxedSubsetArguments& a) : length(static_cast<int>(a.length)) {
    const auto blocks = static_cast<int>(cg::this_cluster().num_blocks());
    batch_row = blockIdx.x / blocks;
    first = static_cast<int>(cg::this_cluster().block_rank() * blockDim.x + threadIdx.x);
    step = blocks * static_cast<int>(blockDim.x);
  }
  __device__ int at(int item) const { return first + item * step; }
};

/// One cluster a batch row, a in registers. Two reductions a round: who leads and by how much, then the weight of all
/// others, as exponentials from the second highest, so that it keeps its digits however far the first is ahead.
template <class S, int Items>
__global__ void __launch_bounds__(threads) forward_kernel(RelaxedSubsetArguments a) {
  const Columns columns(a);
  double now[Items];
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int j = columns.at(i);
    now[i] = j < columns.length ? a.a[columns.batch_row * a.length + j] : nothing;
  }
  cg::this_cluster().sync();  // no block writes into the memory of one that has not started
  for (std::int64_t round = 0; round < a.rounds; ++round) {
    const int turn = static_cast<int>(round % 2);
    Leaders leaders = {nothing, nothing, no_row};
#pragma unroll
    for (int i = 0; i < Items; ++i)
      if (columns.at(i) < columns.length) leaders.take({now[i], nothing, columns.at(i)});
    leaders = leaders_of_cluster(leaders, turn);
    const auto logit = [&](double value) { return fmax((value - leaders.first) / a.temperature, floor_logit); };
    const double second = leaders.second > nothing ? logit(leaders.second) : floor_logit;
    double u[Items], from_second[Items];
    Sums<1> rest = {};
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const int j = columns.at(i);
      u[i] = logit(now[i]);
      from_second[i] = j < columns.length && j != leaders.row ? exp(u[i] - second) : 0.0;
      rest.of[0] += from_second[i];
    }
    rest = sum_over_cluster(rest, turn);
    const double of_others = a.length > 1 ? rest.of[0] : 1.0;
    const double log_all = log1p(exp(second) * of_others);
    const double log_rest = second + log(of_others) - log_all;
    const double scale = exp(second - log_all);
    const auto place = columns.batch_row * a.rounds + round;
    if (columns.first == 0) {
      a.top[place] = leaders.row;
      a.log_rest[place] = log_rest;
    }
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const int j = columns.at(i);
      if (j >= columns.length) continue;
      const double weight = j == leaders.row ? exp(-log_all) : from_second[i] * scale;
      static_cast<S*>(a.weights)[place * a.length + j] = static_cast<S>(weight);
      static_cast<S*>(a.log_weights)[place * a.length + j] = static_cast<S>(fmax(u[i] - log_all, -1e30));
      now[i] = fmax(now[i] + (weight > 0.5 ? log_rest : log1p(-fmin(weight, 0.5))), floor_logit);
    }
  }
  cg::this_cluster().sync();  // no block leaves while another writes into its memory
}

/// The rounds backwards; the derivatives are those of RelaxedSubsetFunction. One reduction a round.
template <class S, int Items>
__global__ void __launch_bounds__(threads) backward_kernel(RelaxedSubsetArguments a) {
  const Columns columns(a);
  double after[Items] = {};
  S next_log[Items], next_own[Items];
  const auto load = [&](std::int64_t round) {
    const auto offset = (columns.batch_row * a.rounds + round) * a.length;
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const int j = columns.at(i);
      next_log[i] = j < columns.length ? static_cast<const S*>(a.log_weights)[offset + j] : S(-1e30);
      next_own[i] = j < columns.length ? static_cast<const S*>(a.weight_gradient)[offset + j] : S(0);
    }
  };
  load(a.rounds - 1);
  cg::this_cluster().sync();
  for (std::int64_t round = a.rounds; round-- > 0;) {
    const auto place = columns.batch_row * a.rounds + round;
    const auto top = static_cast<int>(a.top[place]);
    const double log_rest = a.log_rest[place];
    double log_weight[Items], weight[Items], own[Items], light[Items];
    Sums<3> sums = {};
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      log_weight[i] = static_cast<double>(next_log[i]);
      own[i] = static_cast<double>(next_own[i]);
    }
    if (round > 0) load(round - 1);
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      weight[i] = exp(log_weight[i]);
      const double pushed = after[i] / a.temperature;
      const bool heavy = weight[i] > 0.5;
      light[i] = heavy ? 0 : pushed * weight[i] / (1 - weight[i]);
      sums.of[0] += weight[i] * own[i];
      sums.of[1] += light[i];
      sums.of[2] += heavy ? pushed : 0;
    }
    sums = sum_over_cluster(sums, static_cast<int>(round % 2));
    const auto [mean, lights, lead] = sums.of;
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const double others = lead != 0 && columns.at(i) != top ? exp(fmin(log_weight[i] - log_rest, 0.0)) : 0;
      after[i] += weight[i] * (own[i] - mean) + weight[i] * lights - light[i] + lead * (others - weight[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int j = columns.at(i);
    if (j < columns.length) a.gradient[columns.batch_row * a.length + j] = after[i] / a.temperature;
  }
  cg::this_cluster().sync();
}

template <class Kernel>
const char* launch(Kernel* kernel, const RelaxedSubsetArguments& a, int blocks, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(a.batch * blocks));
  config.blockDim = dim3(threads);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  const auto error = cudaLaunchKernelEx(&config, kernel, a);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class S, int Items>
const char* run(const RelaxedSubsetArguments& a, bool forward, cudaStream_t stream) {
  int blocks = 1;
  while (blocks < cluster_blocks && blocks * threads * Items < a.length) blocks *= 2;
  return forward ? launch(forward_kernel<S, Items>, a, blocks, stream)
                 : launch(backward_kernel<S, Items>, a, blocks, stream);
}

template <class S>
const char* run(const RelaxedSubsetArguments& a, bool forward, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (a.length <= threads) return run<S, 1>(a, forward, cuda_stream);
  if (a.length <= cluster_blocks * threads * few_items) return run<S, few_items>(a, forward, cuda_stream);
  return run<S, most_items>(a, forward, cuda_stream);
}

}  // namespace

bool relaxed_subset_fits(std::int64_t length) { return length <= most_items * cluster_blocks * threads; }

const char* relaxed_subset_forward_cuda(const RelaxedSubsetArguments& arguments, void* stream) {
  return arguments.float64_weights ? run<double>(arguments, true, stream) : run<float>(arguments, true, stream);
}

const char* relaxed_subset_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream) {
  return arguments.float64_weights ? run<double>(arguments, false, stream) : run<float>(arguments, false, stream);
}

}  // namespace transpool
