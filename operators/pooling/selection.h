#pragma once

#include "operators/tensor.h"

namespace transpool {

/// Scores with NaN as -inf; differentiable.
at::Tensor nan_as_lowest(const at::Tensor& scores);

/// Detached scores with NaN as -inf and, where lengths are given, rows past the length as -inf. A stable descending sort of
/// the result ranks padded rows after every real one, since they also stand last.
at::Tensor rankable_scores(const at::Tensor& scores, const std::optional<at::Tensor>& lengths);

/// Scores that arithmetic can take: clamped to +-`score_bound`, NaN as the lowest; differentiable, with gradient 0 where
/// a score was replaced.
inline constexpr double score_bound = 1e4;
at::Tensor bounded_scores(const at::Tensor& scores);

/// Float64 scores rounded to float32. Ranking by these, forms and devices agree on the order of mixed scores although their
/// arithmetic differs in the last bits.
at::Tensor comparable_scores(const at::Tensor& scores);

/// Positions (B, k) int64 of the k highest rows, ties to the lower position; -1 past min(k, length), always last.
/// `keep_order`: in source order, else by falling score.
at::Tensor select_top_rows(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                           bool keep_order);

/// x (B, n, ...) at positions (B, k) -> (B, k, ...); zero where the position is -1, whatever x holds.
at::Tensor gather_rows(const at::Tensor& x, const at::Tensor& positions);

}  // namespace transpool
