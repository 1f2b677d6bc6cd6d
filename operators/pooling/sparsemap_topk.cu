#include "operators/pooling/threshold_mask.cuh"

namespace transpool {
namespace {

using threshold_mask_kernel::Rise;

struct Clipped {
  static __device__ Rise at(double z) { return {min(max(z, 0.0), 1.0), z > 0 && z < 1 ? 1.0 : 0.0}; }
};

const RegisterThresholdMaskKernel<Clipped> registration("sparsemap_topk");

}  // namespace
}  // namespace transpool
