#pragma once

#include "operators/element.h"

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of one segmented weighted gather; weights are float64 for float64, else float32.
struct WeightedGatherArguments {
  const void* x = nullptr;             ///< (batch, length, width)
  const std::int64_t* rows = nullptr;  ///< (batch, slots, fan_in)
  const void* weights = nullptr;       ///< (batch, slots, fan_in)
  const void* out_gradient = nullptr;  ///< (batch, slots, width); backward only
  void* out = nullptr;                 ///< (batch, slots, width); forward only
  void* x_gradient = nullptr;          ///< (batch, length, width), zeroed where a row may be unnamed; backward only
  void* weight_gradient = nullptr;     ///< (batch, slots, fan_in); backward only
  std::int64_t batch = 0, length = 0, slots = 0, fan_in = 0, width = 0;
  Element element = Element::float32;
};

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* weighted_gather_forward_cuda(const WeightedGatherArguments& arguments, void* stream);
const char* weighted_gather_backward_cuda(const WeightedGatherArguments& arguments, void* stream);

}  // namespace transpool
