#include "operators/pooling/threshold_mask.h"

#include <algorithm>

namespace transpool {
namespace {

/// The regulariser |y|^p / p has gradient y^(p-1) = y^(1/3), so that y = z^3 where neither bound of [0, 1] holds it.
at::Tensor cube(const at::Tensor& z) { return z.clamp(0, 1).pow(3); }

at::Tensor cube_slope(const at::Tensor& z) { return z.clamp(0, 1).square().mul_(3).mul_(z < 1); }

at::Tensor product_of_ramps(const at::Tensor& z) {
  const auto ramp = 1 - (1 - z.relu()).relu();
  return ramp * ramp * ramp;
}

long double threshold(const FallingScores& z, std::int64_t k) {
  return bisected_threshold(z, k, [](long double each) {
    const auto ramp = std::clamp(each, 0.0L, 1.0L);
    return ramp * ramp * ramp;
  });
}

const RegisterPooling registration(threshold_mask_variant({
    .name = "sander_p43",
    .description = "the k highest rows times the cube of (s - tau) / T clipped to [0, 1], masks summing to k",
    .source = "Sander et al., arXiv 2302.01425, p-norm regularised top-k mask at p = 4/3",
    .phi = {cube, cube_slope, 0, 1},
    .reference = {product_of_ramps, threshold},
}));

}  // namespace
}  // namespace transpool
