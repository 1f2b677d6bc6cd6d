#pragma once

#include "operators/tensor.h"

#include <optional>
#include <tuple>

namespace transpool {

/// What the backward pass of `semiseparable_mixture` reads besides the inputs, as the dispatcher takes it. `mean` and
/// `slope` are empty where absent. See SemiseparableArguments for each.
struct SemiseparableState {
  /// Which of scalars (4, B, k).
  enum Scalar { decay, scale, tilt, score_slope, scalar_count };

  at::Tensor clean, top, rank, scalars, mean, slope;
};

/// Values, mixed scores, positions, and the state. An operator gives no tensor twice: the float64 and float32 values stand
/// for their own mean.
using SemiseparableResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// The implementations of `transpool::semiseparable_mixture` and `transpool::semiseparable_mixture_backward` on the CPU.
SemiseparableResult semiseparable_forward_cpu(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                                              const std::optional<at::Tensor>& lengths, double sharpness, bool two_sided,
                                              bool keep);
std::tuple<at::Tensor, at::Tensor> semiseparable_backward_cpu(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& scores, const std::optional<at::Tensor>& lengths,
    const at::Tensor& clean, const at::Tensor& top, const at::Tensor& rank, const at::Tensor& scalars,
    const at::Tensor& mean, const at::Tensor& slope, double sharpness, bool two_sided);

}  // namespace transpool
