#include "operators/pooling/threshold_mask.h"

#include <algorithm>

namespace transpool {
namespace {

at::Tensor clipped(const at::Tensor& z) { return z.clamp(0, 1); }

at::Tensor clipped_slope(const at::Tensor& z) { return ((z > 0) & (z < 1)).to(at::kDouble); }

at::Tensor nested_ramps(const at::Tensor& z) { return 1 - (1 - z.relu()).relu(); }

/// The sum is linear between the places where a row enters or saturates: interpolation between the two around k.
long double threshold(const FallingScores& z, std::int64_t k) {
  const auto sum = [&](long double tau) {
    long double total = 0;
    for (const auto each : z) total += std::clamp(each - tau, 0.0L, 1.0L);
    return total;
  };
  std::vector<long double> corners;
  for (const auto each : z) corners.insert(corners.end(), {each, each - 1});
  std::sort(corners.begin(), corners.end());
  const auto goal = static_cast<long double>(k);
  const auto reached =
      std::partition_point(corners.begin(), corners.end(), [&](long double tau) { return sum(tau) > goal; });
  const auto passed = std::partition_point(reached, corners.end(), [&](long double tau) { return sum(tau) >= goal; });
  if (passed != reached) return (*reached + *(passed - 1)) / 2;
  const auto low = *(reached - 1), high = *reached;
  return low + (sum(low) - goal) * (high - low) / (sum(low) - sum(high));
}

const RegisterPooling registration(threshold_mask_variant({
    .name = "sparsemap_topk",
    .description = "the k highest rows times (s - tau) / T clipped to [0, 1], masks summing to k",
    .source = "Sander et al., arXiv 2302.01425, p-norm regularised top-k mask at p = 2; arXiv 2406.16747, SparseK operator",
    .phi = {clipped, clipped_slope, 0, 1},
    .reference = {nested_ramps, threshold},
}));

}  // namespace
}  // namespace transpool
