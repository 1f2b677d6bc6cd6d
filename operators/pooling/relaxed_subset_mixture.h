#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

/// Whether kernels run on that device in this build.
bool relaxed_subset_runs_on(const at::Device& device);

/// Whether they take x (B, n, d): on such a device, of a length that one cluster of blocks holds, d > 0.
bool relaxed_subset_mixture_takes(const at::Tensor& x);

/// The mixtures of `relaxed_subset` by kernels: x (B, n, d) and its lengths as the operator got them, clean scores (B, n),
/// and a (B, n) float64, the logits of the first round times the temperature. Differentiable once, in all three. Weights
/// that are smooth in the score are never formed: they are a series of at most 32 polynomials of the score, and x is met by
/// those alone. Others are written for a matrix product, in x's dtype, and computed again in the backward pass, from O(k + n
/// k / 32) numbers a batch row. Dispatched as `transpool::relaxed_subset_rounds`, `transpool::relaxed_subset_values` and
/// `transpool::relaxed_subset_backward`.
Pooled relaxed_subset_mixture(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& a, std::int64_t k,
                              const std::optional<at::Tensor>& lengths, double temperature);

}  // namespace transpool
