#include "operators/pooling/successive_halving_tree.cuh"

#include <cmath>

namespace transpool {
namespace {

/// dx = weight * dout of one leaf's row; gives <x, dout>. By a whole warp. Rows of no weight get zeros and are not read.
template <class T, int V, class Sum>
__device__ Sum leaf_backward(const T* x, const T* out_gradient, T* x_gradient, std::int64_t width, Sum weight) {
  Sum dot = 0;
#pragma unroll 4
  for (std::int64_t column = (threadIdx.x % 32) * V; column < width; column += 32 * V) {
    Pack<T, V> result = {};
    if (weight != Sum(0)) {
      const auto from_x = *reinterpret_cast<const Pack<T, V>*>(x + column);
      const auto from_out = *reinterpret_cast<const Pack<T, V>*>(out_gradient + column);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Sum g = static_cast<Sum>(from_out.element[v]);
        dot += g * static_cast<Sum>(from_x.element[v]);
        result.element[v] = static_cast<T>(weight * g);
      }
    }
    *reinterpret_cast<Pack<T, V>*>(x_gradient + column) = result;
  }
  return sum_in_warp(dot);
}

constexpr int backward_threads = 128;

/// One block an output: one warp a leaf's row, then the tree. Every source row is a leaf of one output.
template <class T, class Score, int V>
__global__ void __launch_bounds__(backward_threads) backward_kernel(SuccessiveHalvingArguments a, double log2_base) {
  using Sum = typename Accumulator<T>::type;
  extern __shared__ double shared_tree[];
  const std::int64_t slot = blockIdx.x;
  const std::int64_t batch = slot / a.slots;
  const std::int64_t leaves = std::int64_t{1} << a.rounds;
  const Tree tree = tree_in(a.tree ? a.tree + slot * 8 * leaves : shared_tree, leaves);
  const auto* leaf = static_cast<const Leaf<Sum>*>(a.leaves) + slot * leaves;
  const auto* scores = static_cast<const Score*>(a.scores) + batch * a.length;
  const auto offset = batch * a.length * a.width;
  const Sum least = least_weight(leaf, leaves, a.epsilon);
  for (std::int64_t c = threadIdx.x / 32; c < leaves; c += backward_threads / 32) {
    const std::int64_t row = leaf[c].row < 0 ? ~leaf[c].row : leaf[c].row;
    if (row < a.length) {
      const Sum weight = leaf[c].row >= 0 && leaf[c].weight >= least ? leaf[c].weight : Sum(0);
      const Sum dot = leaf_backward<T, V>(static_cast<const T*>(a.x) + offset + row * a.width,
                                          static_cast<const T*>(a.values_gradient) + slot * a.width,
                                          static_cast<T*>(a.x_gradient) + offset + row * a.width, a.width, weight);
      if (threadIdx.x % 32 == 0) {
        const double score = leaf[c].row >= 0 ? static_cast<double>(scores[row]) : -infinity();
        tree.score[c] = isnan(score) ? -infinity() : score;
        tree.gain[c] = dot;
      }
    } else if (threadIdx.x % 32 == 0) {
      tree.score[c] = -infinity();
      tree.gain[c] = 0;
    }
  }
  __syncthreads();
  const double slot_gradient = a.slot_gradient ? static_cast<double>(static_cast<const Score*>(a.slot_gradient)[slot]) : 0;
  const bool by_warp = leaves <= warp_leaves;
  if (by_warp && threadIdx.x >= 32) return;
  if (by_warp) {
    tree_backward(tree, leaf, a.rounds, slot_gradient, log2_base, threadIdx.x, 32, [] { __syncwarp(); });
  } else {
    tree_backward(tree, leaf, a.rounds, slot_gradient, log2_base, threadIdx.x, backward_threads, [] { __syncthreads(); });
  }
  for (std::int64_t c = threadIdx.x; c < leaves; c += by_warp ? 32 : backward_threads) {
    const std::int64_t row = leaf[c].row < 0 ? ~leaf[c].row : leaf[c].row;
    if (row >= a.length) continue;
    const bool counts = leaf[c].row >= 0 && !isnan(scores[row]);
    static_cast<Score*>(a.score_gradient)[batch * a.length + row] = counts ? static_cast<Score>(tree.gain[c]) : Score(0);
  }
}

template <class T, int V>
void launch_backward(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.batch * a.slots);
  const auto bytes = a.tree ? 0 : (std::size_t{8} << a.rounds) * sizeof(double);
  const double log2_base = std::log2(a.base);
  if (a.float64_scores) backward_kernel<T, double, V><<<blocks, backward_threads, bytes, stream>>>(a, log2_base);
  else backward_kernel<T, float, V><<<blocks, backward_threads, bytes, stream>>>(a, log2_base);
}

}  // namespace

std::int64_t tree_workspace(int rounds) {
  const std::int64_t leaves = std::int64_t{1} << rounds;
  return leaves <= shared_leaves ? 0 : 8 * leaves;
}

const char* successive_halving_backward_cuda(const SuccessiveHalvingArguments& a, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  return by_access(a.element, a.width, {a.x, a.values_gradient, a.x_gradient},
                   [&]<class T, int V>() { launch_backward<T, V>(a, static_cast<cudaStream_t>(stream)); });
}

}  // namespace transpool
