#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

/// Whether kernels run on that device in this build.
bool relaxed_subset_runs_on(const at::Device& device);

/// Whether they take x (B, n, d): on such a device, of a length that one cluster of blocks holds.
bool relaxed_subset_mixture_takes(const at::Tensor& x);

/// The mixtures of `relaxed_subset` by kernels: x (B, n, d) and its lengths as the operator got them, clean scores (B, n),
/// and a (B, n) float64, the logits of the first round times the temperature. Differentiable once, in all three. The weights
/// (B, k, n) stand in memory only as factors of a matrix product, in x's dtype: the backward pass computes them again, from
/// O(k + n k / 32) numbers a batch row. Dispatched as `transpool::relaxed_subset_rounds`,
/// `transpool::relaxed_subset_weights` and `transpool::relaxed_subset_rounds_backward`.
Pooled relaxed_subset_mixture(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& a, std::int64_t k,
                              const std::optional<at::Tensor>& lengths, double temperature);

}  // namespace transpool
