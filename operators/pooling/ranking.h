#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

/// Scores in falling order, ties to the lower position, padded rows last.
struct Ranking {
  at::Tensor order;    ///< (B, n) int64: the source row of each rank
  at::Tensor ranks;    ///< (B, n) int64: the rank of each source row
  at::Tensor scores;   ///< (B, n): the scores by rank; differentiable
  at::Tensor leaders;  ///< (B, n) int64: the first source row that scores exactly as the row of that rank
};

/// Ranks clean scores (B, n), which `clean_scores` gives.
Ranking rank_scores(const at::Tensor& clean, const std::optional<at::Tensor>& lengths);

/// Bytes that the gradient of `Ranking::scores` keeps: the order, and the scores that are gathered in it.
double ranking_bytes(const PoolingShape& shape);

/// The source rows of one batch row's scores (L,) by falling score, counted pair by pair, for references.
at::Tensor order_by_counting(const at::Tensor& scores);

}  // namespace transpool
