#include "operators/pooling/threshold_mask_cuda.h"

namespace transpool {

std::map<std::string, ThresholdMaskKernel>& threshold_mask_kernels() {
  static std::map<std::string, ThresholdMaskKernel> kernels;
  return kernels;
}

}  // namespace transpool
