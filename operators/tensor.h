#pragma once

#include "operators/error.h"

#include <ATen/ATen.h>

#include <optional>
#include <string>

namespace transpool {

/// "float32" -> torch.float32. Throws UsageError at `where` for a name that is not known.
at::ScalarType dtype_from_name(const std::string& name, const Where& where = {});
std::string dtype_name(at::ScalarType dtype);

/// The dtype in which sums over elements of `dtype` are taken: float32 for half types, else `dtype` itself.
at::ScalarType accumulation_dtype(at::ScalarType dtype);

/// (B, n) bool: position < length of its row. `lengths` is int64 (B,).
at::Tensor valid_positions(const at::Tensor& lengths, std::int64_t length);

/// Throws UsageError naming the tensor unless lengths is absent, or int64 (B,) on the device of `like` (B, ...) with values
/// from 0 to `longest`. The values are checked on the CPU only.
void check_lengths(const std::optional<at::Tensor>& lengths, std::int64_t longest, const at::Tensor& like);

}  // namespace transpool
