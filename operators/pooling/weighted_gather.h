#pragma once

#include "operators/tensor.h"

namespace transpool {

/// out[b, j] = sum over c of weights[b, j, c] * x[b, rows[b, j, c]]: a segmented weighted gather that reads each named row
/// of x once. x (B, n, d); rows (B, k, c) int64, where -1 names no row; weights (B, k, c) in any floating dtype. Rows of
/// weight 0 are not read, and pass no gradient to their weight. No row of x may be named twice in one batch row, so that the
/// backward pass needs no atomics: dx[rows] = weight * dout, dweight = <x[rows], dout>. Sums are taken in float32 (float64
/// for float64). `every_row_named`: the caller knows that each row of x is named, so that its gradient need not be zeroed
/// first. Dispatched as `transpool::weighted_gather` and `transpool::weighted_gather_backward`.
at::Tensor weighted_gather(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights,
                           bool every_row_named = false);

/// "cpu" or "cuda": the kernel that runs on that device. Throws Unsupported where there is none.
std::string weighted_gather_backend(const at::Device& device);

}  // namespace transpool
