#pragma once

#include "operators/tensor.h"

#include <optional>
#include <string>
#include <tuple>

namespace transpool {

/// What runs on that device: "cpu" or "cuda".
std::string soft_topk_backend(const at::Device& device);

/// The entropic plan of `soft_topk` by kernels that compute each share where it is needed and store none but the weights.
/// Shares under e^-50 count as 0. levels (B, n) float64 fall from 0 by rank, ranks (B, n) int64 are those of the source
/// rows, potentials and mass (B, k + 1) float64. Steps as in `soft_topk`; a batch
/// row takes no more of them once its column sums hold to rounding. Gives weights (B, k, n) of `dtype`, source rows,
/// each output's over their sum, and the potentials that were found. No autograd. Dispatched as `transpool::soft_topk_plan`.
std::tuple<at::Tensor, at::Tensor> soft_topk_plan(const at::Tensor& levels, const at::Tensor& order,
                                                  const at::Tensor& potentials, const at::Tensor& mass,
                                                  const std::optional<at::Tensor>& lengths, std::int64_t iterations,
                                                  std::int64_t newton_steps, double ridge, at::ScalarType dtype);

/// The gradient (B, n) float64 of the source rows' levels, by the optimality conditions differentiated, taking the plan of
/// these potentials for converged. Dispatched as `transpool::soft_topk_plan_backward`.
at::Tensor soft_topk_plan_backward(const at::Tensor& weight_gradient, const at::Tensor& levels, const at::Tensor& order,
                                   const at::Tensor& potentials, const at::Tensor& mass,
                                   const std::optional<at::Tensor>& lengths, double ridge);

}  // namespace transpool
