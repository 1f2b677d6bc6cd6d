#pragma once

#include "operators/attention/attention.h"

namespace transpool {

/// LibTorch's fused attention under the mask. Only what has lengths pays for a mask tensor.
at::Tensor scaled_dot_product(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask);

/// Bytes that it keeps beside the output and the log-sum-exps where lengths are given: the mask (B, 1, queries, keys), which
/// the fused call takes in the dtype of q, and which batch rows have no key.
double mask_bytes(const AttentionShape& shape);

}  // namespace transpool
