#pragma once

#include "runners/measure/operator_pass.h"
#include "runners/report/record.h"
#include "runners/sweep/experiment.h"

namespace transpool {

/// Source rows of the k highest scores, which selection is judged by: (B, k) int64, -1 past min(k, length).
at::Tensor hard_rows(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths);

/// Share of the hard rows (B, k) that are positions (B, k) of outputs, (B,).
at::Tensor overlap(const at::Tensor& hard, const at::Tensor& positions, std::int64_t n);

/// Mean over the hard rows of x of the largest cosine that any output has with it, (B,): `cosine_rowwise` of the authors'
/// benchmark (applicaai/successive-halving-topk, benchmarker/benchmark.py: max_rowwise).
at::Tensor matched_cosine(const at::Tensor& x, const at::Tensor& values, const at::Tensor& hard);

/// The weights (B, k, n) by which outputs mix source rows, from pooling unit vectors, `block` columns of x at a time. The
/// global generators stand at `noise_seed` before each block.
at::Tensor weight_matrix(const PoolingOperator& op, const at::Tensor& scores, std::int64_t k,
                         const std::optional<at::Tensor>& lengths, std::int64_t block, std::uint64_t noise_seed);

/// Effective number of rows in each output, exp of the entropy of its weights (B, k, n): 1 for a copy, n for a mean; (B, k).
at::Tensor effective_rows(const at::Tensor& weights);

/// Gradient in the scores of E[sum of `utility` (B, n) over the k highest of scores + width * noise], Gaussian noise, (B, n)
/// float64. Each draw is conditioned on the noise of all other rows, which leaves the density at the threshold
/// that a row must pass times what its entry would change: the limit of finite differences, at a small part of their
/// variance. `width` is (B, 1).
at::Tensor smoothed_gradient(const at::Tensor& scores, const at::Tensor& utility, std::int64_t k,
                             const std::optional<at::Tensor>& lengths, const at::Tensor& width, std::int64_t draws);

/// Adds selection quality of the cell's pooling operator to the record, over fresh draws of the pass's inputs; gradient
/// quality too where the pass goes backward.
void measure_selection(const Cell& cell, const Selection<PoolingVariant>& selection, PoolingPass& pass, Record& record);

}  // namespace transpool
