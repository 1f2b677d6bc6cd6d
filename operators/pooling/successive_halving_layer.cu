#include "operators/pooling/successive_halving.cuh"
#include "operators/pooling/successive_halving_layer_cuda.h"

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

constexpr int score_threads = 128;
constexpr int score_rows = 4;  // in flight in a warp

/// A few consecutive rows of one batch row a warp; `blocks_each` blocks a batch row.
template <class T, int V>
__global__ void __launch_bounds__(score_threads) score_kernel(LayerArguments l, unsigned blocks_each) {
  using Sum = typename Accumulator<T>::type;
  extern __shared__ double memory[];
  const auto& a = l.pooling;
  auto* weight = reinterpret_cast<Sum*>(memory);
  for (std::int64_t i = threadIdx.x; i < a.width; i += score_threads) weight[i] = element_at<Sum>(l.weight, l.precision, i);
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const unsigned batch = blockIdx.x / blocks_each;
  const std::int64_t first = ((blockIdx.x % blocks_each) * (score_threads / 32) + threadIdx.x / 32) * score_rows;
  const std::int64_t valid = min(a.length, a.lengths ? a.lengths[batch] : a.length);
  const T* x = static_cast<const T*>(a.x) + (batch * a.length + first) * a.width;
  Sum sum[score_rows] = {};
#pragma unroll 2
  for (std::int64_t column = lane * V; column < a.width; column += 32 * V) {
    Pack<T, V> pack[score_rows] = {};
#pragma unroll
    for (int r = 0; r < score_rows; ++r)
      if (first + r < valid) pack[r] = *reinterpret_cast<const Pack<T, V>*>(x + r * a.width + column);
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
    if (lane == r && first + r < a.length)
      l.scores[batch * a.length + first + r] = first + r < valid ? 1 / (1 + expf(-logit)) + l.floor : 0.0f;
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

/// What the loss gains from a unit of logit: d score / d logit times `gain`, the gradient of the score.
template <class Sum>
__device__ Sum logit_gain(Sum score, float floor, Sum gain) {
  const Sum share = min(max(score - static_cast<Sum>(floor), Sum(0)), Sum(1));
  return gain * share * (1 - share);
}

constexpr int layer_threads = 128;
constexpr int layer_stages = 1;                 // outputs whose rows are in shared memory at once
constexpr std::int64_t kept_bytes = 64 * 1024;  // that they take, at most
constexpr std::int64_t warp_leaves = 64;        // the tree of so many leaves is worked on by one warp

/// What a block of the backward pass has in shared memory.
template <class T>
struct LayerMemory {
  using Sum = typename Accumulator<T>::type;
  T* rows;      // of the leaves of each stage; none where they are not kept
  Sum* tree;    // see WeightTree
  Sum* weight;  // of the scorer
  Sum* sums;    // of weight's and bias' gradient, by group of threads

  static __host__ __device__ std::int64_t bytes(std::int64_t leaves, std::int64_t width, int groups, bool keep) {
    return (keep ? layer_stages * leaves * width * static_cast<std::int64_t>(sizeof(T)) : 0) +
           (tree_numbers * leaves + width + groups * (width + 1)) * static_cast<std::int64_t>(sizeof(Sum));
  }

  __device__ LayerMemory(void* memory, std::int64_t leaves, std::int64_t width, bool keep)
      : rows(static_cast<T*>(memory)),
        tree(reinterpret_cast<Sum*>(rows + (keep ? layer_stages * leaves * width : 0))),
        weight(tree + tree_numbers * leaves),
        sums(weight + width) {}
};

__device__ unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

/// A barrier in shared memory that bytes on their way are counted at.
struct Arrival {
  unsigned address;

  __device__ explicit Arrival(const unsigned long long* barrier) : address(shared_address(barrier)) {}
  __device__ void init() const {
    asm volatile(
        "mbarrier.init.shared.b64 [%0], 1;\n"
        "fence.proxy.async.shared::cta;" ::"r"(address)
        : "memory");
  }
  __device__ void expect(unsigned bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
  }
  __device__ void wait(unsigned parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "WAIT: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra WAIT;\n"
        "}" ::"r"(address),
        "r"(parity)
        : "memory");
  }
  /// Brings `bytes`, a multiple of 16, from global memory.
  __device__ void bring(void* to, const void* from, unsigned bytes) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(address)
        : "memory");
  }
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

/// One output in a block's hands. `Keep`: the rows of its leaves are brought into shared memory and read there.
template <class T, int V, bool Keep>
struct LayerOutput {
  using Sum = typename Accumulator<T>::type;

  const LayerArguments& l;
  const SuccessiveHalvingArguments& a;
  const LayerMemory<T>& memory;
  const T* kept;
  const std::int64_t leaves;
  const WeightTree<Sum> tree;
  const Leaf<Sum>* leaf;
  const float* scores;
  const T *x, *out_gradient;
  T* x_gradient;
  Sum slot_gradient;

  __device__ LayerOutput(const LayerArguments& l, const LayerMemory<T>& memory, unsigned slot, int stage)
      : l(l), a(l.pooling), memory(memory), leaves(std::int64_t{1} << a.rounds), tree(memory.tree, leaves) {
    const auto batch = slot / static_cast<unsigned>(a.slots);
    const auto rows = batch * a.length;
    kept = memory.rows + stage * leaves * a.width;
    leaf = static_cast<const Leaf<Sum>*>(a.leaves) + slot * leaves;
    scores = static_cast<const float*>(a.scores) + rows;
    x = static_cast<const T*>(a.x) + rows * a.width;
    out_gradient = static_cast<const T*>(a.values_gradient) + slot * a.width;
    x_gradient = static_cast<T*>(a.x_gradient) + rows * a.width;
    slot_gradient = a.slot_gradient ? static_cast<Sum>(static_cast<const float*>(a.slot_gradient)[slot]) : Sum(0);
  }

  __device__ const T* row_of(const Leaf<Sum>& of, std::int64_t c) const {
    return Keep ? kept + c * a.width : x + of.row * a.width;
  }

  __device__ bool counts(const Leaf<Sum>& of) const { return readable(of) && !isnan(scores[of.row]); }

  /// Sends for the rows that count for something. By one warp.
  __device__ void fetch(const Arrival& arrival) const {
    const auto bytes = static_cast<unsigned>(a.width * sizeof(T));
    unsigned count = 0;
    for (std::int64_t c = threadIdx.x; c < leaves; c += 32) count += readable(leaf[c]);
    count = __reduce_add_sync(0xffffffffu, count);
    if (threadIdx.x == 0) arrival.expect(count * bytes);
    __syncwarp();
    for (std::int64_t c = threadIdx.x; c < leaves; c += 32)
      if (readable(leaf[c])) arrival.bring(const_cast<T*>(kept) + c * a.width, x + leaf[c].row * a.width, bytes);
  }

  /// The leaves' scores, weights, and what the loss gains from a unit of weight. One warp a leaf.
  __device__ void read_leaves(Sum least) const {
    for (std::int64_t c = threadIdx.x / 32; c < leaves; c += layer_threads / 32) {
      const auto own = leaf[c];
      const bool mixed = readable(own) && own.weight >= least;
      const Sum dot = mixed ? row_dot<T, V, Sum>(row_of(own, c), out_gradient, a.width) : Sum(0);
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
        if (gain != Sum(0)) from_x = *reinterpret_cast<const Pack<T, V>*>(row_of(own, c) + column);
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
    for (std::int64_t c = group; c < leaves; c += groups) sum += tree.gain[c];
    sums[a.width] += sum;
  }
};

/// Each block works on every so many-th output, and adds up what they give to the scorer's gradients.
template <class T, int V, bool Keep>
__global__ void __launch_bounds__(layer_threads) layer_backward_kernel(LayerArguments l, double log2_base, int groups) {
  using Sum = typename Accumulator<T>::type;
  using Output = LayerOutput<T, V, Keep>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ unsigned long long barriers[layer_stages];
  const auto& a = l.pooling;
  const std::int64_t leaves = std::int64_t{1} << a.rounds, sums = groups * (a.width + 1);
  const LayerMemory<T> memory(shared, leaves, a.width, Keep);
  for (std::int64_t i = threadIdx.x; i < a.width; i += layer_threads)
    memory.weight[i] = element_at<Sum>(l.weight, l.precision, i);
  for (std::int64_t i = threadIdx.x; i < sums; i += layer_threads) memory.sums[i] = 0;
  if (Keep && threadIdx.x < layer_stages) Arrival(&barriers[threadIdx.x]).init();
  __syncthreads();
  const auto outputs = static_cast<unsigned>(a.batch * a.slots);
  const auto fetch = [&](unsigned number) {  // the number-th output of this block
    const auto slot = blockIdx.x + number * gridDim.x;
    if (!Keep || threadIdx.x >= 32 || slot >= outputs) return;
    const int stage = static_cast<int>(number % layer_stages);
    Output(l, memory, slot, stage).fetch(Arrival(&barriers[stage]));
  };
  for (unsigned number = 0; number + 1 < layer_stages; ++number) fetch(number);
  for (unsigned number = 0, slot = blockIdx.x; slot < outputs; ++number, slot += gridDim.x) {
    fetch(number + layer_stages - 1);
    const Output output(l, memory, slot, static_cast<int>(number % layer_stages));
    const Sum least = least_weight(output.leaf, leaves, a.epsilon);
    if (Keep) Arrival(&barriers[number % layer_stages]).wait(number / layer_stages % 2);
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

/// How the backward pass is launched.
struct LayerLaunch {
  int groups = 1;  ///< of the block's threads, each with some of the leaves
  bool keep = false;
  std::int64_t blocks = 0;
  std::int64_t bytes = 0;
  const void* kernel = nullptr;
};

template <class T, int V>
LayerLaunch layer_launch_of(const LayerArguments& l) {
  const auto& a = l.pooling;
  const std::int64_t leaves = std::int64_t{1} << a.rounds;
  LayerLaunch launch;
  launch.keep = V > 1 && layer_stages * leaves * a.width * static_cast<std::int64_t>(sizeof(T)) <= kept_bytes;
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
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, launch.kernel, layer_threads,
                                                static_cast<std::size_t>(launch.bytes));
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
  cudaLaunchKernel(launch.kernel, dim3(static_cast<unsigned>(launch.blocks)), dim3(layer_threads), arguments,
                   static_cast<std::size_t>(launch.bytes), stream);
  const auto columns = static_cast<unsigned>(l.pooling.width / 32 + 1);
  sum_kernel<Sum><<<columns, 32 * sum_warps, 0, stream>>>(l, launch.blocks * launch.groups);
}

template <class T, int V>
void launch_scores(const LayerArguments& l, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(l.pooling.width) * sizeof(typename Accumulator<T>::type);
  constexpr int rows = score_threads / 32 * score_rows;
  const auto blocks_each = static_cast<unsigned>((l.pooling.length + rows - 1) / rows);
  const auto blocks = static_cast<unsigned>(l.pooling.batch) * blocks_each;
  score_kernel<T, V><<<blocks, score_threads, bytes, stream>>>(l, blocks_each);
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
  const auto needed = kept_bytes + ((std::int64_t{tree_numbers} << rounds) + width + groups * (width + 1)) * sum;
  return needed <= largest && width * sum <= 48 * 1024;
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
