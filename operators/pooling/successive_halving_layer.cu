#include "operators/pooling/successive_halving_layer.cuh"
#include "operators/pooling/successive_halving_team.cuh"

#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

using LayerArguments = SuccessiveHalvingLayerArguments;

constexpr int score_threads = 256;
constexpr int score_rows = 4;  // a warp reads at once

/// The scores of consecutive rows from each lane's part of their products. By a whole warp.
template <class Sum>
__device__ void write_scores(const LayerArguments& l, std::int64_t batch, std::int64_t first, Sum (&part)[score_rows],
                             Sum bias) {
  const auto& a = l.pooling;
  const std::int64_t valid = min(a.length, a.lengths ? a.lengths[batch] : a.length);
  const float logit = rounded<float>(static_cast<float>(sum_each_in_warp(part) + bias), l.precision);
  const std::int64_t row = first + threadIdx.x % 32;
  if (threadIdx.x % 32 < score_rows && row < a.length)
    l.scores[batch * a.length + row] = row < valid ? 1 / (1 + expf(-logit)) + l.floor : 0.0f;
}

/// Where a warp stands in its rows: so many of one batch row at once, 32 packs of each at a time.
struct ScoreStep {
  unsigned task;  // numbers the groups of rows of all batch rows
  std::int64_t column;
};

/// Each warp scores every so many-th group of consecutive rows, and reads one step ahead of what it sums.
template <class T, int V>
__global__ void __launch_bounds__(score_threads) score_kernel(LayerArguments l, unsigned tasks, unsigned tasks_each) {
  using Sum = typename Accumulator<T>::type;
  using Packs = RawPack<T, V>[score_rows];
  extern __shared__ double memory[];
  const auto& a = l.pooling;
  const int lane = threadIdx.x % 32;
  const unsigned warps = gridDim.x * (score_threads / 32);
  const auto read = [&](const ScoreStep& step, Packs& to) {
    if (step.task >= tasks) return;
    const unsigned batch = step.task / tasks_each;
    const std::int64_t first = step.task % tasks_each * score_rows;
    const std::int64_t valid = min(a.length, a.lengths ? a.lengths[batch] : a.length);
    const std::int64_t column = step.column + lane * V;
    const T* x = static_cast<const T*>(a.x) + (batch * a.length + first) * a.width + column;
#pragma unroll
    for (int r = 0; r < score_rows; ++r) {
      to[r] = {};
      if (first + r < valid && column < a.width) to[r].read(x + r * a.width);
    }
  };
  ScoreStep step{blockIdx.x * (score_threads / 32) + threadIdx.x / 32, 0};
  Packs now, next;
  read(step, now);
  auto* weight = reinterpret_cast<Sum*>(memory);
  for (std::int64_t i = threadIdx.x; i < a.width; i += score_threads) weight[i] = element_at<Sum>(l.weight, l.precision, i);
  __syncthreads();
  const Sum bias = element_at<Sum>(l.bias, l.precision, 0);
  Sum sum[score_rows] = {};
  while (step.task < tasks) {
    const bool last = step.column + 32 * V >= a.width;
    const ScoreStep after = last ? ScoreStep{step.task + warps, 0} : ScoreStep{step.task, step.column + 32 * V};
    read(after, next);
    if (const auto column = step.column + lane * V; column < a.width)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Sum factor = weight[column + v];
#pragma unroll
        for (int r = 0; r < score_rows; ++r) sum[r] += rounded<T>(now[r].at(v), l.precision) * factor;
      }
    if (last) {
      write_scores(l, step.task / tasks_each, step.task % tasks_each * score_rows, sum, bias);
#pragma unroll
      for (int r = 0; r < score_rows; ++r) sum[r] = 0;
    }
#pragma unroll
    for (int r = 0; r < score_rows; ++r) now[r] = next[r];
    step = after;
  }
}

/// The tree of one output, all nodes of a level side by side, the leaves first: 2^(rounds + 1) numbers each. What leaves
/// weigh says how the two of each pair shared, so that nothing is played again.
template <class Sum>
struct WeightTree {
  Sum* score;
  Sum* gain;    // first: what the loss gains from a unit of weight; then: the gradient of the score
  Sum* weight;  // of all leaves below

  __device__ WeightTree(Sum* memory, std::int64_t leaves)
      : score(memory), gain(memory + 2 * leaves), weight(memory + 4 * leaves) {}
};
constexpr int tree_numbers = 6;  // a leaf

template <class Sum>
struct Shares {
  Sum first, second;
};

template <class Sum>
__device__ Shares<Sum> shares_of(Sum first, Sum second) {
  const Sum both = first + second;
  return both > 0 ? Shares<Sum>{first / both, second / both} : Shares<Sum>{1, 0};
}

/// Brings the gradient of an output's score and of its leaves' weights (in `gain`) down to the leaves' scores (in `gain`).
/// By `group` threads that `sync` waits for. Scores are finite where there is weight.
template <class Sum, class Sync>
__device__ void tree_backward(const WeightTree<Sum>& t, int rounds, Sum slot_gradient, Sum log2_base, int member, int group,
                              Sync sync) {
  constexpr Sum ln_2 = static_cast<Sum>(0.6931471805599453);
  const std::int64_t leaves = std::int64_t{1} << rounds;
  const auto level = [&](int number) { return 2 * (leaves - (leaves >> number)); };
  for (int number = 0; number < rounds; ++number) {
    const auto from = level(number), to = level(number + 1);
    for (std::int64_t j = member; j < leaves >> (number + 1); j += group) {
      const auto i = from + 2 * j;
      const auto [first, second] = shares_of(t.weight[i], t.weight[i + 1]);
      t.score[to + j] = second == 0 ? t.score[i] : first * t.score[i] + second * t.score[i + 1];
      t.gain[to + j] = first * t.gain[i] + second * t.gain[i + 1];
      t.weight[to + j] = t.weight[i] + t.weight[i + 1];
    }
    sync();
  }
  if (member == 0) t.gain[level(rounds)] = slot_gradient;
  sync();
  for (int number = rounds; number-- > 0;) {
    const auto to = level(number), from = level(number + 1);
    for (std::int64_t j = member; j < leaves >> (number + 1); j += group) {
      const auto i = to + 2 * j;
      const auto [first, second] = shares_of(t.weight[i], t.weight[i + 1]);
      const Sum a = t.score[i], b = t.score[i + 1], above = t.gain[from + j];
      const Sum lead = second == 0 ? Sum(0) : a - b;
      const Sum slope = first * second * log2_base * ln_2;
      const Sum share_gradient = (t.weight[from + j] * (t.gain[i] - t.gain[i + 1]) + above * lead) * slope;
      t.gain[i] = above * first + (slope == 0 ? Sum(0) : share_gradient * exp2(log2_base * a));
      t.gain[i + 1] = above * second - (slope == 0 ? Sum(0) : share_gradient * exp2(log2_base * b));
    }
    sync();
  }
}

constexpr int layer_threads = 128;
constexpr std::int64_t warp_leaves = 64;  // the tree of so many leaves is worked on by one warp

/// What a block of the backward pass has in shared memory where no team takes the rows.
template <class Sum>
struct LayerMemory {
  Sum* tree;    // see WeightTree
  Sum* weight;  // of the scorer
  Sum* sums;    // of weight's and bias' gradient, by group of threads

  static __host__ __device__ std::int64_t bytes(std::int64_t leaves, std::int64_t width, int groups) {
    return (tree_numbers * leaves + width + groups * (width + 1)) * static_cast<std::int64_t>(sizeof(Sum));
  }

  __device__ LayerMemory(Sum* memory, std::int64_t leaves, std::int64_t width)
      : tree(memory), weight(tree + tree_numbers * leaves), sums(weight + width) {}
};

/// Whether a leaf's row may be read: it is valid and counts for something.
template <class Sum>
__device__ bool readable(const Leaf<Sum>& leaf) {
  return leaf.row >= 0 && leaf.weight != Sum(0);
}

/// <x, dout>. By a whole warp.
template <class T, int V, class Sum>
__device__ Sum row_dot(const T* x, const T* out_gradient, std::int64_t width) {
  Sum dot = 0;
#pragma unroll 4
  for (std::int64_t column = (threadIdx.x % 32) * V; column < width; column += 32 * V) {
    const auto from_x = *reinterpret_cast<const Pack<T, V>*>(x + column);
    const auto from_out = *reinterpret_cast<const Pack<T, V>*>(out_gradient + column);
#pragma unroll
    for (int v = 0; v < V; ++v) dot += static_cast<Sum>(from_out.element[v]) * static_cast<Sum>(from_x.element[v]);
  }
  return sum_in_warp(dot);
}

/// One output in a block's hands.
template <class T, int V>
struct LayerOutput {
  using Sum = typename Accumulator<T>::type;

  const LayerArguments& l;
  const SuccessiveHalvingArguments& a;
  const LayerMemory<Sum>& memory;
  const std::int64_t leaves;
  const WeightTree<Sum> tree;
  const Leaf<Sum>* leaf;
  const float* scores;
  const T *x, *out_gradient;
  T* x_gradient;
  Sum slot_gradient;

  __device__ LayerOutput(const LayerArguments& l, const LayerMemory<Sum>& memory, unsigned slot)
      : l(l), a(l.pooling), memory(memory), leaves(std::int64_t{1} << a.rounds), tree(memory.tree, leaves) {
    const auto batch = slot / static_cast<unsigned>(a.slots);
    const auto rows = batch * a.length;
    leaf = static_cast<const Leaf<Sum>*>(a.leaves) + slot * leaves;
    scores = static_cast<const float*>(a.scores) + rows;
    x = static_cast<const T*>(a.x) + rows * a.width;
    out_gradient = static_cast<const T*>(a.values_gradient) + slot * a.width;
    x_gradient = static_cast<T*>(a.x_gradient) + rows * a.width;
    slot_gradient = a.slot_gradient ? static_cast<Sum>(static_cast<const float*>(a.slot_gradient)[slot]) : Sum(0);
  }

  __device__ const T* row_of(const Leaf<Sum>& of) const { return x + of.row * a.width; }

  __device__ bool counts(const Leaf<Sum>& of) const { return readable(of) && !isnan(scores[of.row]); }

  /// The leaves' scores, weights, and what the loss gains from a unit of weight. One warp a leaf.
  __device__ void read_leaves(Sum least) const {
    for (std::int64_t c = threadIdx.x / 32; c < leaves; c += layer_threads / 32) {
      const auto own = leaf[c];
      const bool mixed = readable(own) && own.weight >= least;
      const Sum dot = mixed ? row_dot<T, V, Sum>(row_of(own), out_gradient, a.width) : Sum(0);
      if (threadIdx.x % 32 != 0) continue;
      tree.score[c] = counts(own) ? static_cast<Sum>(scores[own.row]) : Sum(0);
      tree.weight[c] = own.row >= 0 ? own.weight : Sum(0);
      tree.gain[c] = dot;
    }
  }

  /// `gain` of the leaves becomes that of their logits.
  template <class Sync>
  __device__ void play(Sum log2_base, int group, Sync sync) const {
    tree_backward(tree, a.rounds, slot_gradient, log2_base, threadIdx.x, group, sync);
    for (std::int64_t c = threadIdx.x; c < leaves; c += group)
      tree.gain[c] = counts(leaf[c]) ? logit_gain(tree.score[c], l.floor, tree.gain[c]) : Sum(0);
  }

  /// dx = weight * dout + gain * (the scorer's weight) of each leaf, and what they add to the scorer's gradients: each
  /// group of threads takes its share of the leaves, and V columns a thread.
  __device__ void finish(int group, int groups, Sum least) const {
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
        const Sum share = tree.weight[c] >= least ? tree.weight[c] : Sum(0), gain = tree.gain[c];
        Pack<T, V> from_x = {}, result;
        if (gain != Sum(0)) from_x = *reinterpret_cast<const Pack<T, V>*>(row_of(own) + column);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const Sum from_out = share != Sum(0) ? share * out[v] : Sum(0);
          result.element[v] = static_cast<T>(gain != Sum(0) ? from_out + gain * weight[v] : from_out);
          sum[v] += gain * rounded<T>(static_cast<Sum>(from_x.element[v]), l.precision);
        }
        *reinterpret_cast<Pack<T, V>*>(x_gradient + row * a.width + column) = result;
      }
#pragma unroll
      for (int v = 0; v < V; ++v) sums[column + v] += sum[v];
    }
    if (member != 0) return;
    Sum sum = 0;
    for (std::int64_t c = group; c < leaves; c += groups) sum += tree.gain[c];
    sums[a.width] += sum;
  }
};

/// Each block works on every so many-th output, and adds up what they give to the scorer's gradients.
template <class T, int V>
__global__ void __launch_bounds__(layer_threads) layer_backward_kernel(LayerArguments l, double log2_base, int groups) {
  using Sum = typename Accumulator<T>::type;
  extern __shared__ double shared[];
  const auto& a = l.pooling;
  const std::int64_t leaves = std::int64_t{1} << a.rounds, sums = groups * (a.width + 1);
  const LayerMemory<Sum> memory(reinterpret_cast<Sum*>(shared), leaves, a.width);
  for (std::int64_t i = threadIdx.x; i < a.width; i += layer_threads)
    memory.weight[i] = element_at<Sum>(l.weight, l.precision, i);
  for (std::int64_t i = threadIdx.x; i < sums; i += layer_threads) memory.sums[i] = 0;
  __syncthreads();
  const auto outputs = static_cast<unsigned>(a.batch * a.slots);
  for (unsigned slot = blockIdx.x; slot < outputs; slot += gridDim.x) {
    const LayerOutput<T, V> output(l, memory, slot);
    const Sum least = least_weight(output.leaf, leaves, a.epsilon);
    output.read_leaves(least);
    __syncthreads();
    if (leaves > warp_leaves) output.play(static_cast<Sum>(log2_base), layer_threads, [] { __syncthreads(); });
    else if (threadIdx.x < 32) output.play(static_cast<Sum>(log2_base), 32, [] { __syncwarp(); });
    __syncthreads();
    output.finish(threadIdx.x / (layer_threads / groups), groups, least);
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

/// How the backward pass is launched where no team takes the rows.
struct LayerLaunch {
  int groups = 1;  ///< of the block's threads, each with some of the leaves
  std::int64_t blocks = 0;
  std::int64_t bytes = 0;
};

template <class T, int V>
LayerLaunch layer_launch_of(const SuccessiveHalvingArguments& a) {
  using Sum = typename Accumulator<T>::type;
  const std::int64_t leaves = std::int64_t{1} << a.rounds;
  LayerLaunch launch;
  while (launch.groups < layer_threads / 32 && launch.groups < leaves && layer_threads / launch.groups / 2 * V >= a.width)
    launch.groups *= 2;
  launch.bytes = LayerMemory<Sum>::bytes(leaves, a.width, launch.groups);
  const auto kernel = layer_backward_kernel<T, V>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.bytes));
  const auto at_once =
      blocks_at_once(reinterpret_cast<const void*>(kernel), layer_threads, static_cast<std::size_t>(launch.bytes));
  launch.blocks = even_blocks(a.batch * a.slots, at_once);
  return launch;
}

/// Rows of partial sums of the scorer's gradients.
template <class T, int V>
std::int64_t partial_sums_of(const LayerArguments& l) {
  if (const auto team = team_launch_of<T, V, /*Scorer=*/true>(l.pooling); team.kernel) return team.blocks;
  const auto launch = layer_launch_of<T, V>(l.pooling);
  return launch.blocks * launch.groups;
}

template <class T, int V>
void launch_layer_backward(const LayerArguments& l, cudaStream_t stream) {
  using Sum = typename Accumulator<T>::type;
  std::int64_t sums = 0;
  if (const auto team = team_launch_of<T, V, /*Scorer=*/true>(l.pooling); team.kernel) {
    team.run(l, stream);
    sums = team.blocks;
  } else {
    const auto launch = layer_launch_of<T, V>(l.pooling);
    sums = launch.blocks * launch.groups;
    layer_backward_kernel<T, V>
        <<<static_cast<unsigned>(launch.blocks), layer_threads, static_cast<std::size_t>(launch.bytes), stream>>>(
            l, std::log2(l.pooling.base), launch.groups);
  }
  const auto columns = static_cast<unsigned>(l.pooling.width / 32 + 1);
  sum_kernel<Sum><<<columns, 32 * sum_warps, 0, stream>>>(l, sums);
}

template <class T, int V>
void launch_scores(const LayerArguments& l, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(l.pooling.width) * sizeof(typename Accumulator<T>::type);
  const auto tasks_each = static_cast<unsigned>((l.pooling.length + score_rows - 1) / score_rows);
  const auto tasks = static_cast<unsigned>(l.pooling.batch) * tasks_each;
  const std::int64_t needed = (tasks + score_threads / 32 - 1) / (score_threads / 32);
  const auto at_once = blocks_at_once(reinterpret_cast<const void*>(score_kernel<T, V>), score_threads, bytes);
  score_kernel<T, V>
      <<<static_cast<unsigned>(std::min(needed, at_once)), score_threads, bytes, stream>>>(l, tasks, tasks_each);
}

template <class Launch>
const char* by_layer_access(const LayerArguments& l, Launch launch) {
  const auto& a = l.pooling;
  return by_access(a.element, a.width, {a.x, a.values_gradient, a.x_gradient}, launch);
}

}  // namespace

bool has_successive_halving_layer_cuda(std::int64_t width, int rounds, Element element) {
  const std::int64_t sum = element == Element::float64 ? sizeof(double) : sizeof(float);
  constexpr std::int64_t largest = 227 * 1024, groups = 2;  // there are no more where rows are that long
  const auto needed = ((std::int64_t{tree_numbers} << rounds) + width + groups * (width + 1)) * sum;
  return needed <= largest && width * sum <= 48 * 1024;
}

std::int64_t successive_halving_layer_sums(const LayerArguments& l) {
  std::int64_t rows = 0;
  by_layer_access(l, [&]<class T, int V>() { rows = partial_sums_of<T, V>(l); });
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
