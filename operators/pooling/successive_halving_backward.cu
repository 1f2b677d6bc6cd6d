#include "operators/pooling/successive_halving_team.cuh"

#include <cmath>

namespace transpool {
namespace {

/// The tree of one output, all nodes of a level side by side, the leaves first: 2^(rounds + 1) numbers each.
struct Tree {
  double* score;
  double* share;  // of the stronger child
  double* gain;   // first: what the loss gains from a unit of weight; then: the gradient of the score
  double* weight;
};

__device__ Tree tree_in(double* memory, std::int64_t leaves) {
  return {memory, memory + 2 * leaves, memory + 4 * leaves, memory + 6 * leaves};
}

/// d share / d score of either side; 0 where one side has all the weight or B^score is not finite.
__device__ double share_slope(double share, double score, double log2_base) {
  constexpr double ln_2 = 0.6931471805599453;
  return finite_or_zero(share * (1 - share) * log2_base * ln_2 * power(log2_base, score));
}

/// Plays an output's tournament again on its leaves' scores, then brings the gradient of its score and of its leaves'
/// weights (in `gain`) down to the leaves' scores (in `gain`). By `group` threads that `sync` waits for.
template <class Sum, class Sync>
__device__ void tree_backward(const Tree& t, const Leaf<Sum>* leaf, int rounds, double slot_gradient, double log2_base,
                              int member, int group, Sync sync) {
  const std::int64_t leaves = std::int64_t{1} << rounds;
  const auto level = [&](double* all, int number) { return all + 2 * (leaves - (leaves >> number)); };
  for (int number = 0; number < rounds; ++number) {
    const auto *score = level(t.score, number), *gain = level(t.gain, number);
    for (std::int64_t j = member; j < leaves >> (number + 1); j += group) {
      const double a = score[2 * j], b = score[2 * j + 1];
      // The first leaf of a node leads it, and padding only leads where all is padding.
      const auto [share, given, mixed] = shares_of(a, b, log2_base, leaf[(2 * j + 1) << number].row >= 0);
      level(t.share, number + 1)[j] = share;
      level(t.score, number + 1)[j] = mixed;
      level(t.gain, number + 1)[j] = share * gain[2 * j] + given * gain[2 * j + 1];
    }
    sync();
  }
  if (member == 0) {
    *level(t.gain, rounds) = slot_gradient;
    *level(t.weight, rounds) = 1;
  }
  sync();
  for (int number = rounds; number-- > 0;) {
    const auto* score = level(t.score, number);
    auto *gain = level(t.gain, number), *weight = level(t.weight, number);
    for (std::int64_t j = member; j < leaves >> (number + 1); j += group) {
      const double share = level(t.share, number + 1)[j], above = level(t.gain, number + 1)[j];
      const double node_weight = level(t.weight, number + 1)[j];
      const double a = score[2 * j], b = score[2 * j + 1];
      const double share_gradient = node_weight * (gain[2 * j] - gain[2 * j + 1]) + above * finite_or_zero(a - b);
      gain[2 * j] = above * share + share_gradient * share_slope(share, a, log2_base);
      gain[2 * j + 1] = above * (1 - share) - share_gradient * share_slope(share, b, log2_base);
      weight[2 * j] = node_weight * share;
      weight[2 * j + 1] = node_weight * (1 - share);
    }
    sync();
  }
}

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
constexpr std::int64_t shared_leaves = 512;  // an output of so many has its tree in shared memory
constexpr std::int64_t warp_leaves = 64;     // and of so many is worked on by one warp

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
  if (const auto team = team_launch_of<T, V, /*Scorer=*/false>(a); team.kernel) return team.run({a}, stream);
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
