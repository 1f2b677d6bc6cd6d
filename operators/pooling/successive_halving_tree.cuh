#pragma once

#include "operators/pooling/successive_halving.cuh"

namespace transpool {

constexpr std::int64_t shared_leaves = 512;  // an output of so many has its tree in shared memory
constexpr std::int64_t warp_leaves = 64;     // and of so many is worked on by one warp

/// The tree of one output, all nodes of a level side by side, the leaves first: 2^(rounds + 1) numbers each.
struct Tree {
  double* score;
  double* share;  // of the stronger child
  double* gain;   // first: what the loss gains from a unit of weight; then: the gradient of the score
  double* weight;
};

__device__ inline Tree tree_in(double* memory, std::int64_t leaves) {
  return {memory, memory + 2 * leaves, memory + 4 * leaves, memory + 6 * leaves};
}

/// d share / d score of either side; 0 where one side has all the weight or B^score is not finite.
__device__ inline double share_slope(double share, double score, double log2_base) {
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
      const double share = leaf[(2 * j + 1) << number].row < 0 ? 1 : stronger_share(a, b, log2_base);
      level(t.share, number + 1)[j] = share;
      level(t.score, number + 1)[j] = mixed_score(a, b, share);
      level(t.gain, number + 1)[j] = share * gain[2 * j] + (1 - share) * gain[2 * j + 1];
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

}  // namespace transpool
