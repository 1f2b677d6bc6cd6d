#pragma once

#include "operators/pooling/pooling.h"
#include "operators/pooling/threshold_mask_cuda.h"

namespace transpool {

/// What the kept rows are multiplied by: nothing, their scores, nothing but with the gradient of their scores, masks.
enum class RowGate { none, score, straight_through, mask };

struct KeptRowsOptions {
  RowGate gate = RowGate::none;
  bool keep_order = true;                     ///< source order, else by falling score
  const ThresholdMaskKernel* mask = nullptr;  ///< for RowGate::mask, as are all below
  double zero = 0, one = 0, hard_gap = 0;     ///< see MaskFunction and ThresholdMaskArguments
  double temperature = 1;
};

/// "cuda" where `keep_rows_by_kernel` has a kernel for that device, else "aten".
std::string kept_rows_backend(const at::Device& device);

/// Gathers the k highest rows by kernels of our own; nothing where this build has none for the device, the dtype or the
/// length. Differentiable; arguments as checked by `check_pooling_arguments`.
std::optional<Pooled> keep_rows_by_kernel(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                                          const std::optional<at::Tensor>& lengths, const KeptRowsOptions& options);

}  // namespace transpool
