#pragma once

#include "operators/pooling/pooling.h"
#include "operators/pooling/tournament.h"

namespace transpool {

/// A linear scorer: score = sigmoid(<x, weight> + bias) + floor, where x, weight, bias and the logit are rounded to
/// `precision` and sums are taken in float32 (float64 for float64). The scores are float32.
struct LinearScores {
  at::Tensor weight;  ///< (d), any floating dtype
  at::Tensor bias;    ///< (1), as the weight
  double floor = 0;
  at::ScalarType precision;  ///< dtype of x, or half or bfloat16 where x is float32
};

/// Whether kernels of our own run a linear scorer and Successive Halving as one on that device in this build.
bool has_successive_halving_layer(const at::Device& device, std::int64_t length, std::int64_t width, std::int64_t k,
                                  at::ScalarType dtype, at::ScalarType precision);

/// Successive Halving of the rows x (B, n, d) by the scores that `scorer` gives them; the rest as successive_halving_kernel
/// takes it. x is read once for the scores and once (in part, with epsilon > 0) by the gather, and once backward, where the
/// gradients of x, weight and bias come of one kernel. Rows whose score is NaN, and padding, add nothing to the scorer's
/// gradients. Gives what the operator gives, and the scores (B, n), 0 where a row is padding, which carry no gradient.
/// Throws Unsupported in a build without CUDA. Dispatched as `transpool::successive_halving_layer` and
/// `transpool::successive_halving_layer_backward`.
std::pair<Pooled, at::Tensor> successive_halving_layer(const at::Tensor& x, const LinearScores& scorer, std::int64_t k,
                                                       const std::optional<at::Tensor>& lengths,
                                                       const TournamentOptions& options, double epsilon);

}  // namespace transpool
