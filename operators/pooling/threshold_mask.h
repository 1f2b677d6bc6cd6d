#pragma once

#include "operators/pooling/pooling.h"
#include "operators/pooling/threshold_mask_reference.h"

namespace transpool {

/// phi in mask_i = phi((s_i - tau) / T): rises from 0 to 1. Both functions map (B, n) float64 elementwise and take -inf.
struct MaskFunction {
  at::Tensor (*value)(const at::Tensor& z);
  at::Tensor (*slope)(const at::Tensor& z);  ///< phi'; 0 where phi is constant, kinks included
  double zero = 0;                           ///< phi is 0, to rounding, at and below this z
  double one = 0;                            ///< phi is 1, to rounding, at and above this z
};

/// e^-z is lost in the rounding of float64 sums from here on, also when a million rows add to it.
inline constexpr double exponential_reach = 45;

/// Masks (B, n) float64 in [0, 1] that sum to min(k, length) in each batch row; 0 past the length. Scores (B, n) as
/// `bounded_scores` takes them. tau is found by a fixed number of bisections and Newton steps, without a look at the
/// values from the host, in O(B n) memory. Differentiable in the scores through the implicit function theorem:
/// ds_i = phi'_i (g_i - sum_j phi'_j g_j / sum_j phi'_j) / T. Masks are exactly 0 and 1, with gradient 0, where
/// length <= k, where phi's rise fits into the gap behind the k-th score, or where all of them are within `nearly_hard` of
/// 0 and 1.
at::Tensor threshold_mask(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                          double temperature, const MaskFunction& phi);

/// What tells one member of the family from another. A member NAME.cpp runs through ATen; beside it, NAME.cu may register
/// its phi as a device function (`RegisterThresholdMaskKernel`), which then runs on CUDA.
struct ThresholdMask {
  std::string name;
  std::string description;
  std::string source;
  double temperature = 0.1;  ///< the default T
  MaskFunction phi;
  ReferenceMask reference;
};

/// The pooling operator that gathers the k highest rows and multiplies each by its mask.
PoolingVariant threshold_mask_variant(const ThresholdMask& family_member);

}  // namespace transpool
