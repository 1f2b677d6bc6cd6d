#pragma once

#include "operators/registry.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <functional>
#include <string>
#include <vector>

namespace transpool {

/// Every combination of the variant's flags and choices, with the given values of other options and defaults for the rest.
inline std::vector<Json> option_combinations(const VariantInfo& variant,
                                             const std::map<std::string, std::vector<Json>>& more) {
  std::vector<Json> all = {Json{{"name", variant.name}}};
  for (const auto& spec : variant.options) {
    std::vector<Json> values;
    if (const auto given = more.find(spec.name); given != more.end()) values = given->second;
    else if (spec.type == OptionType::boolean) values = {true, false};
    else if (spec.type == OptionType::choice) values.assign(spec.choices.begin(), spec.choices.end());
    else continue;
    std::vector<Json> next;
    for (const auto& options : all)
      for (const auto& value : values) {
        next.push_back(options);
        next.back()[spec.name] = value;
      }
    all = next;
  }
  return all;
}

/// What `call` throws as `Error`, or what happened instead.
template <class Error = UsageError>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("thrown as another type: ") + error.what();
  }
  return "nothing was thrown";
}

/// Equal within the tolerance; infinities and NaN equal themselves.
inline testing::AssertionResult close(const at::Tensor& a, const at::Tensor& b, double relative, double absolute) {
  if (a.sizes() != b.sizes()) return testing::AssertionFailure() << "shape " << a.sizes() << " against " << b.sizes();
  if (a.scalar_type() != b.scalar_type())
    return testing::AssertionFailure() << c10::toString(a.scalar_type()) << " against " << c10::toString(b.scalar_type());
  if (at::allclose(a, b, relative, absolute, /*equal_nan=*/true)) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "largest difference "
                                     << (a.detach() - b.detach()).abs().nan_to_num().max().item<double>();
}

inline bool finite(const at::Tensor& tensor) { return tensor.isfinite().all().item<bool>(); }

}  // namespace transpool
