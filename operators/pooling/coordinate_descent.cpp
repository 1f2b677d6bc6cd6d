#include "operators/pooling/threshold_mask.h"

#include <cmath>

namespace transpool {
namespace {

at::Tensor capped_exponential(const at::Tensor& z) { return z.clamp_max(0).exp(); }

at::Tensor capped_exponential_slope(const at::Tensor& z) { return z.exp().masked_fill_(z >= 0, 0); }

at::Tensor shifted_exponential(const at::Tensor& z) { return 1 + at::expm1(-(-z).relu()); }

/// With the j highest rows at their cap, the rest has the sum k - j: tau = log sum_{i > j} e^z_i - log(k - j). The right j
/// is the first that leaves no later row above the cap.
long double threshold(const FallingScores& z, std::int64_t k) {
  std::vector<long double> log_sums(z.size());
  log_sums.back() = z.back();
  for (std::size_t i = z.size() - 1; i-- > 0;) log_sums[i] = z[i] + std::log1p(std::exp(log_sums[i + 1] - z[i]));
  for (std::int64_t capped = 0;; ++capped) {
    const auto rest = static_cast<std::size_t>(capped);
    const auto tau = log_sums[rest] - std::log(static_cast<long double>(k - capped));
    if (capped == k - 1 || z[rest] <= tau) return tau;
  }
}

const RegisterPooling registration(threshold_mask_variant({
    .name = "coordinate_descent",
    .description = "the k highest rows times min(1, e^((s - tau) / T)), masks summing to k",
    .source = "CoLT5, arXiv 2303.09752: the coordinate descent of its router at convergence",
    .temperature = 0.03,
    .phi = {capped_exponential, capped_exponential_slope, -exponential_reach, 0},
    .reference = {shifted_exponential, threshold},
}));

}  // namespace
}  // namespace transpool
