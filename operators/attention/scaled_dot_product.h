#pragma once

#include "operators/attention/attention.h"

namespace transpool {

/// LibTorch's fused attention under the mask. Only what has lengths pays for a mask tensor.
at::Tensor scaled_dot_product(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask);

}  // namespace transpool
