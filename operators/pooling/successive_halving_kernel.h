#pragma once

#include "operators/pooling/pooling.h"
#include "operators/pooling/tournament.h"

namespace transpool {

/// Whether kernels of our own run Successive Halving over `length` rows on that device in this build, which take up to 2^20
/// rows padded to k * 2^rounds: a tournament on the scores (one kernel, or several a round where rows are long) and a
/// gather, and one kernel backward. Everything else is composed (see run_tournament and weighted_gather).
bool has_successive_halving_kernel(const at::Device& device, std::int64_t length, std::int64_t k);

/// What the weights left out of one output may sum to by the operator's options `skip` and `epsilon`. `auto` is half a unit
/// in the last place of the output's dtype at 1.
double skipped_weight(const Options& options, at::ScalarType dtype);

/// The operator by these kernels; x and scores as PoolingOperator::forward takes them. Weights of an output that sum to no
/// more than `epsilon` are left out, and their rows not read (see keep_weights). Differentiable in x and scores.
/// Dispatched as `transpool::successive_halving` and `transpool::successive_halving_backward`.
Pooled successive_halving_kernel(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                                 const std::optional<at::Tensor>& lengths, const TournamentOptions& options, double epsilon);

}  // namespace transpool
