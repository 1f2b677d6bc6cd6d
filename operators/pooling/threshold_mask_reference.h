#pragma once

#include "operators/pooling/pooling.h"

#include <vector>

namespace transpool {

/// z = (s - s_k) / T of one batch row, falling, in more digits than float64.
using FallingScores = std::vector<long double>;

/// One member of the family of threshold masks, for its reference: scalar code for tau, plain autograd for the masks.
struct ReferenceMask {
  at::Tensor (*mask)(const at::Tensor& z);                                ///< phi, differentiable through autograd
  long double (*threshold)(const FallingScores& z, std::int64_t k) = {};  ///< tau with sum phi(z - tau) = k < z.size()
};

/// tau by bisection to the last digit; the middle of all solutions where there are several.
long double bisected_threshold(const FallingScores& z, std::int64_t k, long double (*phi)(long double z));

/// The k highest rows times their masks, one batch row at a time. The gradient comes from autograd through one Newton step
/// from the solution. Options `temperature` and `keep_order`.
std::shared_ptr<const PoolingOperator> threshold_mask_reference(const ReferenceMask& mask, const Options& options);

}  // namespace transpool
