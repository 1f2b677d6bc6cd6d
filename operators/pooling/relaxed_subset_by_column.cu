#include "operators/pooling/relaxed_subset.cuh"

#include <cooperative_groups.h>

namespace transpool {
namespace {

namespace cg = cooperative_groups;

constexpr int threads = 512;
constexpr int cluster_blocks = 8;  // the largest that every device of the architecture takes
constexpr int most_items = 8;      // columns a thread holds
constexpr int few_items = 4;       // as many before blocks are added: smaller clusters wait less, and all run at once
constexpr int window = relaxed_subset_window;

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

template <int Items>
__device__ void keep_checkpoint(const RelaxedSubsetArguments& a, const Columns& columns, const double (&now)[Items],
                                std::int64_t round) {
  const auto windows = (a.rounds + window - 1) / window;
  double* kept = a.checkpoints + (columns.batch_row * windows + round / window) * a.length;
#pragma unroll
  for (int i = 0; i < Items; ++i)
    if (columns.at(i) < columns.length) kept[columns.at(i)] = now[i];
}

template <class S>
__device__ void keep_round(const RelaxedSubsetArguments& a, std::int64_t b, std::int64_t round, const Lead& lead, int top,
                           double mixed) {
  const auto rows = a.batch * a.rounds, place = b * a.rounds + round;
  a.leads[place] = lead.first;
  a.leads[rows + place] = lead.log_all;
  a.leads[2 * rows + place] = lead.log_rest;
  a.top[place] = top;
  static_cast<S*>(a.mixed)[place] = static_cast<S>(mixed);
}

/// One cluster a batch row, a in registers. Two reductions a round: who leads and by how much, then the weight of all
/// others, as exponentials from the second highest, so that it keeps its digits however far the first is ahead.
template <class S, int Items>
__global__ void __launch_bounds__(threads) forward_kernel(RelaxedSubsetArguments a) {
  const Columns columns(a);
  if (a.degree[columns.batch_row] > 0) return;
  const auto* scores = static_cast<const S*>(a.scores) + columns.batch_row * a.length;
  double now[Items];
  S score[Items];
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int j = columns.at(i);
    now[i] = j < columns.length ? a.a[columns.batch_row * a.length + j] : nothing;
    score[i] = j < columns.length ? scores[j] : S(0);
  }
  cg::this_cluster().sync();  // no block writes into the memory of one that has not started
  for (std::int64_t round = 0; round < a.rounds; ++round) {
    const int turn = static_cast<int>(round % 2);
    if (round % window == 0) keep_checkpoint(a, columns, now, round);
    Leaders leaders = {nothing, nothing, no_row};
#pragma unroll
    for (int i = 0; i < Items; ++i)
      if (columns.at(i) < columns.length) leaders.take({now[i], nothing, columns.at(i)});
    leaders = leaders_of_cluster(leaders, turn);
    const auto logit = [&](double value) { return fmax((value - leaders.first) / a.temperature, floor_logit); };
    const double second = leaders.second > nothing ? logit(leaders.second) : floor_logit;
    double from_second[Items];
    Sums<2> rest = {};
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const int j = columns.at(i);
      from_second[i] = j < columns.length && j != leaders.row ? exp(logit(now[i]) - second) : 0.0;
      rest.of[0] += from_second[i];
      rest.of[1] += from_second[i] * static_cast<double>(score[i]);
    }
    rest = sum_over_cluster(rest, turn);
    const double of_others = a.length > 1 ? rest.of[0] : 1.0;
    const double log_all = log1p(exp(second) * of_others);
    const double scale = exp(second - log_all), largest = exp(-log_all);
    const Lead lead(leaders.first, log_all, second + log(of_others) - log_all, a.temperature);
    if (columns.first == 0)
      keep_round<S>(a, columns.batch_row, round, lead, leaders.row,
                    largest * static_cast<double>(scores[leaders.row]) + scale * rest.of[1]);
#pragma unroll
    for (int i = 0; i < Items; ++i)
      if (columns.at(i) < columns.length)
        now[i] = lead.after(now[i], columns.at(i) == leaders.row ? largest : from_second[i] * scale);
  }
  cg::this_cluster().sync();  // no block leaves while another writes into its memory
}

/// The logarithms of a window's weights from the `a` that was kept before it. Each thread writes and reads its own columns.
template <int Items>
__device__ void weigh_window(const RelaxedSubsetArguments& a, const Columns& columns, std::int64_t first, std::int64_t end) {
  const auto windows = (a.rounds + window - 1) / window;
  const double* start = a.checkpoints + (columns.batch_row * windows + first / window) * a.length;
  auto* log_weights = a.window_log_weights + columns.batch_row * window * a.length;
  double now[Items];
#pragma unroll
  for (int i = 0; i < Items; ++i) now[i] = columns.at(i) < columns.length ? start[columns.at(i)] : nothing;
  for (auto round = first; round < end; ++round) {
    const Lead lead(a, columns.batch_row, round);
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const int j = columns.at(i);
      if (j >= columns.length) continue;
      const double log_weight = lead.log_weight(now[i]);
      log_weights[(round - first) * a.length + j] = log_weight;
      now[i] = lead.after(now[i], exp(log_weight));
    }
  }
}

/// The rounds backwards; the derivatives are those of RelaxedSubsetFunction. One reduction a round.
template <class S, class E, int Items>
__global__ void __launch_bounds__(threads) backward_kernel(RelaxedSubsetArguments a) {
  const Columns columns(a);
  if (a.degree[columns.batch_row] > 0) return;
  const double power = 1 / a.temperature;
  const auto* log_weights = a.window_log_weights + columns.batch_row * window * a.length;
  double after[Items] = {}, of_score[Items] = {};
  S score[Items];
  double next_log[Items];
  E next_own[Items];
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int j = columns.at(i);
    score[i] = j < columns.length ? static_cast<const S*>(a.scores)[columns.batch_row * a.length + j] : S(0);
  }
  const auto load = [&](std::int64_t round) {
    const auto offset = (columns.batch_row * a.rounds + round) * a.length;
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      const int j = columns.at(i);
      next_log[i] = j < columns.length ? log_weights[round % window * a.length + j] : -1e30;
      next_own[i] = j < columns.length ? static_cast<const E*>(a.weight_gradient)[offset + j] : E(0.0f);
    }
  };
  cg::this_cluster().sync();
  for (std::int64_t round = a.rounds; round-- > 0;) {
    if (round + 1 == a.rounds || (round + 1) % window == 0) {
      weigh_window<Items>(a, columns, round / window * window, round + 1);
      load(round);
    }
    const auto place = columns.batch_row * a.rounds + round;
    const auto top = static_cast<int>(a.top[place]);
    const double log_rest = a.leads[2 * a.batch * a.rounds + place];
    const auto of_mixed = static_cast<double>(static_cast<const S*>(a.mixed_gradient)[place]);
    double log_weight[Items], weight[Items], own[Items], light[Items];
    Sums<3> sums = {};
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      log_weight[i] = next_log[i];
      own[i] = static_cast<double>(static_cast<S>(next_own[i])) + of_mixed * static_cast<double>(score[i]);
    }
    if (round % window > 0) load(round - 1);
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      weight[i] = exp(log_weight[i]);
      const double pushed = after[i] * power;
      const bool heavy = weight[i] > 0.5;
      light[i] = heavy ? 0 : pushed * weight[i] / (1 - weight[i]);
      sums.of[0] += weight[i] * own[i];
      sums.of[1] += light[i];
      sums.of[2] += heavy ? pushed : 0;
      of_score[i] += weight[i] * of_mixed;
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
    if (j >= columns.length) continue;
    a.gradient[columns.batch_row * a.length + j] = after[i] * power;
    static_cast<S*>(a.score_gradient)[columns.batch_row * a.length + j] = static_cast<S>(of_score[i]);
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

template <int Items>
int cluster_size(const RelaxedSubsetArguments& a) {
  int blocks = 1;
  while (blocks < cluster_blocks && blocks * threads * Items < a.length) blocks *= 2;
  return blocks;
}

/// call<Items>() with as many columns a thread as the length asks for.
template <class Call>
const char* by_items(const RelaxedSubsetArguments& a, Call call) {
  if (a.length <= threads) return call.template operator()<1>();
  if (a.length <= cluster_blocks * threads * few_items) return call.template operator()<few_items>();
  return call.template operator()<most_items>();
}

}  // namespace

bool relaxed_subset_fits(std::int64_t length) { return length <= most_items * cluster_blocks * threads; }

const char* relaxed_subset_by_column_cuda(const RelaxedSubsetArguments& arguments, void* stream) {
  return by_items(arguments, [&]<int Items>() {
    const auto blocks = cluster_size<Items>(arguments);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return arguments.element == Element::float64 ? launch(forward_kernel<double, Items>, arguments, blocks, cuda_stream)
                                                 : launch(forward_kernel<float, Items>, arguments, blocks, cuda_stream);
  });
}

const char* relaxed_subset_by_column_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream) {
  return by_items(arguments, [&]<int Items>() {
    const char* error = nullptr;
    by_element(arguments.element, [&]<class S, class E>() {
      error =
          launch(backward_kernel<S, E, Items>, arguments, cluster_size<Items>(arguments), static_cast<cudaStream_t>(stream));
    });
    return error;
  });
}

}  // namespace transpool
