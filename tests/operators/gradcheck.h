#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <cmath>
#include <functional>
#include <vector>

namespace transpool {

using Differentiable = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

/// Gradients of <outputs, cotangents> in the inputs; zeros where an input is not reached.
inline std::vector<at::Tensor> gradients_of(const Differentiable& function, const std::vector<at::Tensor>& inputs,
                                            const std::vector<at::Tensor>& cotangents) {
  std::vector<at::Tensor> leaves, outputs, given;
  for (const auto& input : inputs) leaves.push_back(input.detach().clone().requires_grad_());
  const auto all = function(leaves);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].requires_grad()) continue;
    outputs.push_back(all[i]);
    given.push_back(cotangents[i]);
  }
  auto gradients = torch::autograd::grad(outputs, leaves, given, std::nullopt, false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < leaves.size(); ++i)
    if (!gradients[i].defined()) gradients[i] = at::zeros_like(inputs[i]);
  return gradients;
}

/// Random factors for the outputs of one call.
inline std::vector<at::Tensor> cotangents_for(const Differentiable& function, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> cotangents;
  for (const auto& output : function(inputs)) cotangents.push_back(at::randn_like(output.detach()));
  return cotangents;
}

/// Compares analytic gradients with central differences of every element of every input, all float64.
inline testing::AssertionResult gradients_match_differences(const Differentiable& function,
                                                            const std::vector<at::Tensor>& inputs, double tolerance = 1e-6) {
  constexpr double step = 1e-6;
  const at::NoGradGuard no_gradient;
  const auto cotangents = cotangents_for(function, inputs);
  std::vector<at::Tensor> analytic;
  {
    const at::AutoGradMode gradient(true);
    analytic = gradients_of(function, inputs, cotangents);
  }
  std::vector<at::Tensor> varied;
  for (const auto& input : inputs) varied.push_back(input.detach().clone(at::MemoryFormat::Contiguous));
  // Outputs are compared before they are summed: a sum of large terms would cost digits.
  const auto difference = [&](double& element) {
    const double middle = element;
    element = middle + step;
    const auto above = function(varied);
    element = middle - step;
    const auto below = function(varied);
    element = middle;
    double sum = 0;
    for (std::size_t i = 0; i < above.size(); ++i) sum += ((above[i] - below[i]) * cotangents[i]).sum().item<double>();
    return sum / (2 * step);
  };
  for (std::size_t i = 0; i < varied.size(); ++i) {
    const auto gradient = analytic[i].contiguous();
    for (std::int64_t e = 0; e < varied[i].numel(); ++e) {
      const double numeric = difference(varied[i].data_ptr<double>()[e]);
      const double found = gradient.data_ptr<double>()[e];
      if (!(std::abs(found - numeric) <= tolerance * std::max({1.0, std::abs(found), std::abs(numeric)})))
        return testing::AssertionFailure()
               << "element " << e << " of input " << i << ": gradient " << found << ", by differences " << numeric;
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace transpool
