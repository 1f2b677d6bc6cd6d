#pragma once

#include <ATen/ATen.h>

namespace transpool {

/// What this machine was measured to reach.
struct Ceilings {
  double copy_bytes_per_second = 0;     ///< of a large copy, reading and writing counted
  double product_flops_per_second = 0;  ///< of a square matrix product, a multiply-accumulate as 2
};

/// Medians by the clock that operators are timed with, measured at the first call in this process for a device and dtype.
const Ceilings& measured_ceilings(const at::Device& device, at::ScalarType dtype);

}  // namespace transpool
