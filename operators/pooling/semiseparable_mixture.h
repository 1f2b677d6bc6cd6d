#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

/// Mixtures whose weights fall exponentially with the distance of the scores, w_tj = exp(-sharpness |s_(t) - s_j|) over
/// their sum, s_(t) being the score of rank t: over all rows (`two_sided`, SoftSort of power 1), or over the rows of rank t
/// and after (iterative softmax). In the order of the scores the weights on either side of the diagonal have rank one (they
/// are semiseparable), so a mixture is the one before, decayed, and one more row: O((n + k) d) instead of the product's O(n
/// k d), and no weight is stored. Rows of rank k and after have one weight each and are summed once; those of weight 0 are
/// not read. Decays are at most 1, so that nothing overflows. Sums in float32 (float64 for float64), bit-identical over
/// runs.
struct SemiseparableOptions {
  double sharpness = 1;
  bool two_sided = false;
};

/// What runs `semiseparable_mixture` on that device in this build: "cuda", "cpu", or "aten" for nothing.
std::string semiseparable_backend(const at::Device& device);

/// Whether it takes these: on a device that it runs on, with float32 scores beside float32, bfloat16 or float16 rows, or all
/// float64.
bool semiseparable_takes(const at::Tensor& x, const at::Tensor& scores);

/// x (B, n, d) and scores (B, n) as the operator got them, as for `mix_rows`. Differentiable once, in both. Keeps
/// O(n + k) numbers a batch row, the values in float32 where x is of a half type and, if `two_sided`, one more tensor (B, k,
/// d). Dispatched as `transpool::semiseparable_mixture` and `transpool::semiseparable_mixture_backward`.
Pooled semiseparable_mixture(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths, const SemiseparableOptions& options);

/// What it costs: FLOPs as of the product with the weights, which it spares, and what the backward pass keeps.
Cost semiseparable_cost(const PoolingShape& shape, bool two_sided);

}  // namespace transpool
