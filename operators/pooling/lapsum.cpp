#include "operators/pooling/threshold_mask.h"

#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

at::Tensor laplace(const at::Tensor& z) {
  const auto tail = (-z.abs()).exp() / 2;
  return at::where(z < 0, tail, 1 - tail);
}

at::Tensor laplace_slope(const at::Tensor& z) { return (-z.abs()).exp() / 2; }

at::Tensor two_halves(const at::Tensor& z) {
  return at::where(z < 0, z.clamp_max(0).exp() / 2, 0.5 - at::expm1(-z.clamp_min(0)) / 2);
}

/// Between two scores the sum is j - e^tau A / 2 + e^-tau B / 2 with j rows above tau: a quadratic in e^tau (LapSum).
long double threshold(const FallingScores& z, std::int64_t k) {
  const auto sum = [&](long double tau) {
    long double total = 0;
    for (const auto each : z) total += each > tau ? 1 - std::exp(tau - each) / 2 : std::exp(each - tau) / 2;
    return total;
  };
  const auto goal = static_cast<long double>(k);
  const auto first_below = std::partition_point(z.begin(), z.end(), [&](long double tau) { return sum(tau) < goal; });
  const auto above = first_below - z.begin();
  const long double nearest = above > 0 ? z[static_cast<std::size_t>(above - 1)] : z.front();
  long double a = 0, b = 0;
  for (auto each = z.begin(); each != first_below; ++each) a += std::exp(nearest - *each);
  for (auto each = first_below; each != z.end(); ++each) b += std::exp(*each - nearest);
  if (above == k && b == 0) return (nearest + *first_below) / 2;  // too far apart for the tails to meet
  const long double lack = goal - static_cast<long double>(above);
  const long double root = std::sqrt(lack * lack + a * b);
  return nearest + std::log(lack > 0 ? b / (lack + root) : (root - lack) / a);
}

const RegisterPooling registration(threshold_mask_variant({
    .name = "lapsum",
    .description = "the k highest rows times the Laplace distribution function of (s - tau) / T, masks summing to k",
    .source = "arXiv 2503.06242, soft top-k selection by LapSum",
    .temperature = 0.03,
    .phi = {laplace, laplace_slope, -exponential_reach, exponential_reach},
    .reference = {two_halves, threshold},
}));

}  // namespace
}  // namespace transpool
