#include "operators/pooling/successive_halving_layer_cuda.h"
#include "operators/pooling/successive_halving_tree.cuh"

#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

using LayerArguments = SuccessiveHalvingLayerArguments;

/// The value as it reads after a cast to a type of less precision and back. Half types have no less here.
template <class T>
__device__ T rounded(T value, Element) {
  return value;
}
template <>
__device__ float rounded(float value, Element to) {
  if (to == Element::bfloat16) return __bfloat162float(__float2bfloat16_rn(value));
  return to == Element::float16 ? __half2float(__float2half_rn(value)) : value;
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

constexpr int score_threads = 256;
constexpr int score_rows = 4;  // in flight in a warp

/// A few consecutive rows a warp.
template <class T, int V>
__global__ void __launch_bounds__(score_threads) score_kernel(LayerArguments l) {
  using Sum = typename Accumulator<T>::type;
  extern __shared__ double memory[];
  const auto& a = l.pooling;
  auto* weight = reinterpret_cast<Sum*>(memory);
  for (std::int64_t i = threadIdx.x; i < a.width; i += score_threads) weight[i] = element_at<Sum>(l.weight, l.precision, i);
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const std::int64_t first = (blockIdx.x * std::int64_t{score_threads / 32} + threadIdx.x / 32) * score_rows;
  const T* row[score_rows];
  bool valid[score_rows];
#pragma unroll
  for (int r = 0; r < score_rows; ++r) {
    const auto batch = (first + r) / a.length;
    row[r] = static_cast<const T*>(a.x) + (first + r) * a.width;
    valid[r] = batch < a.batch && (first + r) % a.length < (a.lengths ? a.lengths[batch] : a.length);
  }
  Sum sum[score_rows] = {};
#pragma unroll 2
  for (std::int64_t column = lane * V; column < a.width; column += 32 * V) {
    Pack<T, V> pack[score_rows] = {};
#pragma unroll
    for (int r = 0; r < score_rows; ++r)
      if (valid[r]) pack[r] = *reinterpret_cast<const Pack<T, V>*>(row[r] + column);
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int r = 0; r < score_rows; ++r)
        sum[r] += rounded(static_cast<Sum>(pack[r].element[v]), l.precision) * weight[column + v];
  }
  const Sum bias = element_at<Sum>(l.bias, l.precision, 0);
#pragma unroll
  for (int r = 0; r < score_rows; ++r) {
    const auto all = static_cast<float>(sum_in_warp(sum[r]) + bias);
    const float logit = rounded(all, l.precision);
    if (lane == r && first + r < a.batch * a.length)
      l.scores[first + r] = valid[r] ? 1 / (1 + expf(-logit)) + l.floor : 0.0f;
  }
}

/// What the loss gains from a unit of logit: d score / d logit times `gain`, the gradient of the score.
__device__ double logit_gain(double score, double floor, double gain) {
  const double share = fmin(fmax(score - floor, 0.0), 1.0);
  return gain * share * (1 - share);
}

constexpr int layer_threads = 128;
constexpr std::int64_t kept_bytes = 64 * 1024;  // rows of an output that stay in shared memory, at most

/// What a block of the backward pass has in shared memory.
template <class T>
struct LayerMemory {
  using Sum = typename Accumulator<T>::type;
  double* tree;  // null: global
  T* rows;       // of the output's leaves
  Sum* weight;   // of the scorer
  Sum* sums;     // of weight's and bias' gradient, by group of threads

  static __host__ __device__ std::size_t bytes(std::int64_t leaves, std::int64_t width, int groups, bool keep) {
    const std::size_t tree = leaves <= shared_leaves ? 8 * leaves * sizeof(double) : 0;
    const std::size_t rows = keep ? (leaves * width * sizeof(T) + 15) / 16 * 16 : 0;
    return tree + rows + (width + groups * (width + 1)) * sizeof(Sum);
  }

  __device__ LayerMemory(double* memory, std::int64_t leaves, std::int64_t width, bool keep) {
    tree = leaves <= shared_leaves ? memory : nullptr;
    rows = reinterpret_cast<T*>(memory + (tree ? 8 * leaves : 0));
    weight =
        reinterpret_cast<Sum*>(reinterpret_cast<char*>(rows) + (keep ? (leaves * width * sizeof(T) + 15) / 16 * 16 : 0));
    sums = weight + width;
  }
};

/// Whether a leaf's row may be read: it is valid and counts for something.
template <class Sum>
__device__ bool readable(const Leaf<Sum>& leaf) {
  return leaf.row >= 0 && leaf.weight != Sum(0);
}

/// <x, dout> of a leaf's row, which goes into `kept` on the way. By a whole warp.
template <bool Keep, class T, int V, class Sum>
__device__ Sum leaf_dot(const T* x, const T* out_gradient, T* kept, std::int64_t width) {
  Sum dot = 0;
#pragma unroll 4
  for (std::int64_t column = (threadIdx.x % 32) * V; column < width; column += 32 * V) {
    const auto from_x = *reinterpret_cast<const Pack<T, V>*>(x + column);
    const auto from_out = *reinterpret_cast<const Pack<T, V>*>(out_gradient + column);
    if (Keep) *reinterpret_cast<Pack<T, V>*>(kept + column) = from_x;
#pragma unroll
    for (int v = 0; v < V; ++v) dot += static_cast<Sum>(from_out.element[v]) * static_cast<Sum>(from_x.element[v]);
  }
  return sum_in_warp(dot);
}

/// One output in a block's hands.
template <class T, int V, bool Keep>
struct LayerOutput {
  using Sum = typename Accumulator<T>::type;

  const LayerArguments& l;
  const SuccessiveHalvingArguments& a;
  const LayerMemory<T>& memory;
  const std::int64_t slot, leaves;
  const Tree tree;
  const Leaf<Sum>* leaf;
  const float* scores;
  const T *x, *out_gradient;
  T* x_gradient;
  Sum least;

  __device__ LayerOutput(const LayerArguments& l, const LayerMemory<T>& memory, std::int64_t slot)
      : l(l),
        a(l.pooling),
        memory(memory),
        slot(slot),
        leaves(std::int64_t{1} << a.rounds),
        tree(tree_in(memory.tree ? memory.tree : a.tree + slot * 8 * leaves, leaves)) {
    const auto batch = slot / a.slots;
    leaf = static_cast<const Leaf<Sum>*>(a.leaves) + slot * leaves;
    scores = static_cast<const float*>(a.scores) + batch * a.length;
    x = static_cast<const T*>(a.x) + batch * a.length * a.width;
    out_gradient = static_cast<const T*>(a.values_gradient) + slot * a.width;
    x_gradient = static_cast<T*>(a.x_gradient) + batch * a.length * a.width;
    least = least_weight(leaf, leaves, a.epsilon);
  }

  __device__ Sum weight_of(const Leaf<Sum>& of) const { return of.row >= 0 && of.weight >= least ? of.weight : Sum(0); }

  /// The leaves' scores, and what the loss gains from a unit of their weights. One warp a leaf.
  __device__ void read_leaves() const {
    for (std::int64_t c = threadIdx.x / 32; c < leaves; c += layer_threads / 32) {
      const auto own = leaf[c];
      Sum dot = 0;
      if (Keep ? readable(own) : weight_of(own) != Sum(0))
        dot = leaf_dot<Keep, T, V, Sum>(x + own.row * a.width, out_gradient, memory.rows + c * a.width, a.width);
      if (threadIdx.x % 32 != 0) continue;
      const double score = own.row >= 0 ? static_cast<double>(scores[own.row]) : -infinity();
      tree.score[c] = isnan(score) ? -infinity() : score;
      tree.gain[c] = weight_of(own) != Sum(0) ? dot : Sum(0);
    }
  }

  /// `gain` of the leaves becomes that of their logits.
  template <class Sync>
  __device__ void play(double log2_base, int group, Sync sync) const {
    const double slot_gradient = a.slot_gradient ? static_cast<double>(static_cast<const float*>(a.slot_gradient)[slot]) : 0;
    tree_backward(tree, leaf, a.rounds, slot_gradient, log2_base, threadIdx.x, group, sync);
    for (std::int64_t c = threadIdx.x; c < leaves; c += group) {
      const bool counts = readable(leaf[c]) && !isnan(scores[leaf[c].row]);
      tree.gain[c] = counts ? logit_gain(tree.score[c], l.floor, tree.gain[c]) : 0;
    }
  }

  /// dx = weight * dout + gain * (the scorer's weight) of each leaf, and what they add to the scorer's gradients: each
  /// group of threads takes its share of the leaves, and V columns a thread.
  __device__ void finish(int group, int groups) const {
    const int members = layer_threads / groups, member = threadIdx.x % members;
    Sum* sums = memory.sums + group * (a.width + 1);
    for (std::int64_t column = member * V; column < a.width; column += members * V) {
      Sum out[V], weight[V], sum[V] = {};
      const auto pack = *reinterpret_cast<const Pack<T, V>*>(out_gradient + column);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out[v] = static_cast<Sum>(pack.element[v]);
        weight[v] = memory.weight[column + v];
      }
#pragma unroll 4
      for (std::int64_t c = group; c < leaves; c += groups) {
        const auto own = leaf[c];
        const std::int64_t row = own.row < 0 ? ~own.row : own.row;
        if (row >= a.length) continue;
        const Sum share = weight_of(own), gain = static_cast<Sum>(tree.gain[c]);
        Pack<T, V> from_x = {}, result;
        if (gain != Sum(0))
          from_x = *reinterpret_cast<const Pack<T, V>*>((Keep ? memory.rows + c * a.width : x + row * a.width) + column);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const Sum from_out = share != Sum(0) ? share * out[v] : Sum(0);
          result.element[v] = static_cast<T>(gain != Sum(0) ? from_out + gain * weight[v] : from_out);
          sum[v] += gain * rounded(static_cast<Sum>(from_x.element[v]), l.precision);
        }
        *reinterpret_cast<Pack<T, V>*>(x_gradient + row * a.width + column) = result;
      }
#pragma unroll
      for (int v = 0; v < V; ++v) sums[column + v] += sum[v];
    }
    if (member != 0) return;
    Sum sum = 0;
    for (std::int64_t c = group; c < leaves; c += groups) sum += static_cast<Sum>(tree.gain[c]);
    sums[a.width] += sum;
  }
};

/// Each block works on every so many-th output, and adds up what they give to the scorer's gradients.
template <class T, int V, bool Keep>
__global__ void __launch_bounds__(layer_threads) layer_backward_kernel(LayerArguments l, double log2_base, int groups) {
  using Sum = typename Accumulator<T>::type;
  extern __shared__ __align__(16) double shared[];
  const auto& a = l.pooling;
  const std::int64_t leaves = std::int64_t{1} << a.rounds, sums = groups * (a.width + 1);
  const LayerMemory<T> memory(shared, leaves, a.width, Keep);
  for (std::int64_t i = threadIdx.x; i < a.width; i += layer_threads)
    memory.weight[i] = element_at<Sum>(l.weight, l.precision, i);
  for (std::int64_t i = threadIdx.x; i < sums; i += layer_threads) memory.sums[i] = 0;
  for (std::int64_t slot = blockIdx.x; slot < a.batch * a.slots; slot += gridDim.x) {
    const LayerOutput<T, V, Keep> output(l, memory, slot);
    output.read_leaves();
    __syncthreads();
    if (leaves > warp_leaves) output.play(log2_base, layer_threads, [] { __syncthreads(); });
    else if (threadIdx.x < 32) output.play(log2_base, 32, [] { __syncwarp(); });
    __syncthreads();
    output.finish(threadIdx.x / (layer_threads / groups), groups);
    __syncthreads();
  }
  auto* partial = static_cast<Sum*>(l.partial_sums) + blockIdx.x * sums;
  for (std::int64_t i = threadIdx.x; i < sums; i += layer_threads) partial[i] = memory.sums[i];
}

constexpr int sum_warps = 32;

/// Sums of 32 columns a block, over all rows, in an order that is always the same.
template <class Sum>
__global__ void __launch_bounds__(32 * sum_warps) sum_kernel(LayerArguments l, std::int64_t rows) {
  __shared__ Sum by_warp[sum_warps][32];
  const std::int64_t width = l.pooling.width, column = blockIdx.x * std::int64_t{32} + threadIdx.x % 32;
  const auto* partial = static_cast<const Sum*>(l.partial_sums);
  Sum sum = 0;
  if (column <= width)
#pragma unroll 8
    for (std::int64_t row = threadIdx.x / 32; row < rows; row += sum_warps) sum += partial[row * (width + 1) + column];
  by_warp[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || column > width) return;
  sum = 0;
#pragma unroll
  for (int warp = 0; warp < sum_warps; ++warp) sum += by_warp[warp][threadIdx.x];
  void* to = column < width ? l.weight_gradient : l.bias_gradient;
  const std::int64_t i = column < width ? column : 0;
  switch (l.gradient_element) {
    case Element::float64: static_cast<double*>(to)[i] = static_cast<double>(sum); break;
    case Element::float32: static_cast<float*>(to)[i] = static_cast<float>(sum); break;
    case Element::float16: static_cast<__half*>(to)[i] = static_cast<__half>(static_cast<float>(sum)); break;
    case Element::bfloat16: static_cast<__nv_bfloat16*>(to)[i] = static_cast<__nv_bfloat16>(static_cast<float>(sum)); break;
  }
}

/// How the backward pass is launched.
struct LayerLaunch {
  int groups = 1;  ///< of the block's threads, each with some of the leaves
  bool keep = false;
  std::int64_t blocks = 0;
  std::size_t bytes = 0;
  const void* kernel = nullptr;
};

template <class T, int V>
LayerLaunch layer_launch_of(const LayerArguments& l) {
  const auto& a = l.pooling;
  const std::int64_t leaves = std::int64_t{1} << a.rounds;
  LayerLaunch launch;
  launch.keep = V > 1 && leaves * a.width * static_cast<std::int64_t>(sizeof(T)) <= kept_bytes;
  while (launch.groups < layer_threads / 32 && launch.groups < leaves && layer_threads / launch.groups / 2 * V >= a.width)
    launch.groups *= 2;
  launch.bytes = LayerMemory<T>::bytes(leaves, a.width, launch.groups, launch.keep);
  launch.kernel = reinterpret_cast<const void*>(layer_backward_kernel<T, V, false>);
  if constexpr (V > 1)
    if (launch.keep) launch.kernel = reinterpret_cast<const void*>(layer_backward_kernel<T, V, true>);
  cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.bytes));
  int device = 0, processors = 1, resident = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, launch.kernel, layer_threads, launch.bytes);
  const std::int64_t outputs = a.batch * a.slots, at_once = std::int64_t{processors} * std::max(resident, 1);
  const auto each = (outputs + at_once - 1) / at_once;
  launch.blocks = (outputs + each - 1) / each;  // as few as take no longer, so that all have as many outputs
  return launch;
}

template <class T, int V>
void launch_layer_backward(const LayerArguments& l, cudaStream_t stream) {
  using Sum = typename Accumulator<T>::type;
  const auto launch = layer_launch_of<T, V>(l);
  double log2_base = std::log2(l.pooling.base);
  int groups = launch.groups;
  void* arguments[] = {const_cast<LayerArguments*>(&l), &log2_base, &groups};
  cudaLaunchKernel(launch.kernel, dim3(static_cast<unsigned>(launch.blocks)), dim3(layer_threads), arguments, launch.bytes,
                   stream);
  const auto columns = static_cast<unsigned>(l.pooling.width / 32 + 1);
  sum_kernel<Sum><<<columns, 32 * sum_warps, 0, stream>>>(l, launch.blocks * launch.groups);
}

template <class T, int V>
void launch_scores(const LayerArguments& l, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(l.pooling.width) * sizeof(typename Accumulator<T>::type);
  constexpr int rows = score_threads / 32 * score_rows;
  const auto blocks = static_cast<unsigned>((l.pooling.batch * l.pooling.length + rows - 1) / rows);
  score_kernel<T, V><<<blocks, score_threads, bytes, stream>>>(l);
}

template <class Launch>
const char* by_layer_access(const LayerArguments& l, Launch launch) {
  const auto& a = l.pooling;
  return by_access(a.element, a.width, {a.x, a.values_gradient, a.x_gradient}, launch);
}

}  // namespace

bool has_successive_halving_layer_cuda(std::int64_t width, int rounds, Element element) {
  // Two groups of threads at most where rows are that long.
  const std::int64_t sum = element == Element::float64 ? sizeof(double) : sizeof(float);
  const auto tree = std::min(std::int64_t{8} << rounds, 8 * shared_leaves) * static_cast<std::int64_t>(sizeof(double));
  return 3 * (width + 1) * sum + tree + kept_bytes <= 227 * 1024 && width * sum <= 48 * 1024;
}

std::int64_t successive_halving_layer_sums(const LayerArguments& l) {
  std::int64_t rows = 0;
  by_layer_access(l, [&]<class T, int V>() {
    const auto launch = layer_launch_of<T, V>(l);
    rows = launch.blocks * launch.groups;
  });
  return rows;
}

const char* successive_halving_layer_scores_cuda(const LayerArguments& l, void* stream) {
  if (l.pooling.batch * l.pooling.length == 0) return nullptr;
  return by_layer_access(l, [&]<class T, int V>() { launch_scores<T, V>(l, static_cast<cudaStream_t>(stream)); });
}

const char* successive_halving_layer_backward_cuda(const LayerArguments& l, void* stream) {
  if (l.pooling.batch * l.pooling.slots == 0) return nullptr;
  return by_layer_access(l, [&]<class T, int V>() { launch_layer_backward<T, V>(l, static_cast<cudaStream_t>(stream)); });
}

}  // namespace transpool
