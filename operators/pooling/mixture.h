#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

/// Scores that arithmetic can take: `bounded_scores`, and 0 without gradient in padded rows, so that whatever is computed
/// from them is finite in every row.
at::Tensor clean_scores(const at::Tensor& scores, const std::optional<at::Tensor>& lengths);

/// softmax over the last dimension of logits (B, k, n), all finite and under 1e30, with weight exactly 0 in padded columns
/// and where `excluded` (B, k, n) bool is true. Where nothing is left to weigh the weights are finite and mean nothing;
/// `mix_rows` drops such outputs of batch rows that are shorter than k. Differentiable; keeps its result alone.
at::Tensor mixture_softmax(const at::Tensor& logits, const std::optional<at::Tensor>& lengths,
                           const std::optional<at::Tensor>& excluded = std::nullopt);

/// weights (..., n) -> (...) int64: the first row whose weight is the largest up to rounding, since equal scores weigh
/// equally, but by different sums.
at::Tensor leading_rows(const at::Tensor& weights);

/// k mixtures of the n rows: values = weights x, scores = weights s, positions = the row of largest weight.
/// x (B, n, d) and scores (B, n) as the operator got them: padded rows are zeroed here and scores bounded, so that neither
/// NaN nor infinities leak. weights (B, k, n), dtype of the scores, must be finite everywhere and 0 in padded columns of
/// batch rows that have any valid row. The product is taken in x's dtype. Output rows past min(k, length) become 0 with
/// score 0 and position -1, and pass no gradient. `leaders` (B, k) int64: the row of largest weight where the operator knows
/// it from its logits, which tie less often than rounded weights; absent, they are
/// `leading_rows(weights)`.
Pooled mix_rows(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& weights,
                const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& leaders = std::nullopt);

/// x (B, n, d) with 0 in padded rows, whatever they hold; x itself without lengths.
at::Tensor without_padding(const at::Tensor& x, const std::optional<at::Tensor>& lengths);

/// Outputs past min(k, length) as `mix_rows` gives them.
Pooled without_absent_outputs(Pooled pooled, const std::optional<at::Tensor>& lengths);

/// The same as `mix_rows` for one batch row of a reference, by sums in float64: x (L, d), scores (L,) and weights (m,
/// L) of the L valid rows, m = min(k, L), where L may be 0. Gives (k, d), (k,), (k,), padded; dtypes of x and scores.
Pooled mix_one_row_plainly(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& weights, std::int64_t k);

/// Runs a reference row by row: `weights_of` maps the bounded float64 scores (L,) of one batch row's valid rows, the number
/// of outputs m = min(k, L) and the batch row's index to weights (m, L). It is not called where L is 0.
using RowWeights = std::function<at::Tensor(const at::Tensor& scores, std::int64_t outputs, std::int64_t batch_row)>;
Pooled mix_by_rows(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                   const RowWeights& weights_of);

/// Bytes of one element of the scores that go with x of that dtype.
std::int64_t score_bytes(at::ScalarType x_dtype);

/// What `mix_rows` costs, for a loss on the values: two products forward (values and scores), two backward.
/// activation_bytes: the outputs, the weights in x's dtype where that is not the scores', the scores as cleaned by the
/// operator and by `mix_rows`, and the masks of lengths; the weights themselves and what stands before them are the
/// operator's: it adds `kept_weights` tensors (B, k, n) in the scores' dtype.
Cost mixture_cost(const PoolingShape& shape, double kept_weights);

}  // namespace transpool
