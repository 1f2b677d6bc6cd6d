#include "operators/pooling/threshold_mask.h"

#include <cmath>

namespace transpool {
namespace {

at::Tensor logistic(const at::Tensor& z) { return z.sigmoid(); }

at::Tensor logistic_slope(const at::Tensor& z) {
  const auto p = z.sigmoid();
  return p * (1 - p);
}

at::Tensor half_tanh(const at::Tensor& z) { return (1 + (z / 2).tanh()) / 2; }

long double threshold(const FallingScores& z, std::int64_t k) {
  return bisected_threshold(z, k, [](long double each) { return 1 / (1 + std::exp(-each)); });
}

const RegisterPooling registration(threshold_mask_variant({
    .name = "sigmoid_threshold",
    .description = "the k highest rows times sigmoid((s - tau) / T), masks summing to k",
    .source =
        "arXiv 2002.06504, SOFT top-k operator (unsorted: entropic optimal transport to two targets); arXiv 1906.08707, LML "
        "projection",
    .temperature = 0.03,
    .phi = {logistic, logistic_slope, -exponential_reach, exponential_reach},
    .reference = {half_tanh, threshold},
}));

}  // namespace
}  // namespace transpool
