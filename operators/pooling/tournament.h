#pragma once

#include "operators/options.h"
#include "operators/tensor.h"

namespace transpool {

struct TournamentOptions {
  double base = 20;
  bool mirror = true;      ///< rank i meets rank N-1-i, else rank i meets rank i + N/2
  bool keep_order = true;  ///< winners go back to source order after each round
};

/// Rounds from n rows to k: ceil(log2(n / k)).
std::int64_t tournament_rounds(std::int64_t n, std::int64_t k);

/// The k x n weight matrix of Successive Halving (arXiv 2010.15552), which has one non-zero per source row, laid out by
/// output row: each output row mixes `fan_in` = 2^rounds source rows.
struct Tournament {
  at::Tensor rows;       ///< (B, k, fan_in) int64 source rows; -1 for a padded one, whose weight is 0
  at::Tensor weights;    ///< (B, k, fan_in) float64; each row sums to 1 (0 where no source row is left)
  at::Tensor scores;     ///< (B, k) float64: scores of the winners, 0 where there is none
  at::Tensor positions;  ///< (B, k) int64: the row that never lost on the way to each output, -1 where there is none
};

/// Runs the tournament on the scores alone. Differentiable in the scores; the pairing is constant. Computed in float64,
/// so that devices and forms agree on the order of near-equal mixed scores. +inf beats everything, two equal scores
/// share evenly, NaN counts as -inf; rows past the length never win and have weight exactly 0.
Tournament run_tournament(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                          const TournamentOptions& options);

/// Which of an output's weights (B, k, fan_in) are worth reading a row for, as (B, k, fan_in) bool: those not below the
/// largest of epsilon, epsilon / 2, epsilon / 4, ... below which they sum to no more than epsilon. Leaving the others out
/// moves an output by at most epsilon times the largest element of x. All where epsilon is 0.
at::Tensor worthwhile_weights(const at::Tensor& weights, double epsilon);

/// `base`, `mirror` and `keep_order` as options of a variant.
std::vector<OptionSpec> tournament_option_specs();
TournamentOptions tournament_options(const Options& options);

}  // namespace transpool
