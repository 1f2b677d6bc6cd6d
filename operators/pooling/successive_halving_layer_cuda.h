#pragma once

#include "operators/pooling/successive_halving_cuda.h"

namespace transpool {

/// Device pointers and sizes of the linear scorer in front of Successive Halving, score = sigmoid(<x, weight> + bias) +
/// floor, and of the backward pass of both together. The scores are float32.
struct SuccessiveHalvingLayerArguments {
  /// As the operator takes it; `scores` are those that the score kernel wrote, `score_gradient` and `tree` are not used.
  SuccessiveHalvingArguments pooling;
  const void* weight = nullptr;          ///< (width), of `precision`
  const void* bias = nullptr;            ///< (1), of `precision`
  Element precision = Element::float32;  ///< what x and the logits are rounded to: that of x, or less than float32 x has
  float floor = 0;
  float* scores = nullptr;  ///< (batch, length): written by the score kernel, 0 where a row is padding

  void* partial_sums = nullptr;  ///< (successive_halving_layer_sums(arguments), width + 1), summed type; all below: backward
  void* weight_gradient = nullptr;              ///< (width)
  void* bias_gradient = nullptr;                ///< (1)
  Element gradient_element = Element::float32;  ///< of these two
};

/// Whether the backward kernel takes outputs of 2^rounds leaves and rows of that width: its sums must fit into shared
/// memory.
bool has_successive_halving_layer_cuda(std::int64_t width, int rounds, Element element);

/// Rows of `partial_sums` that the backward pass needs on the current device.
std::int64_t successive_halving_layer_sums(const SuccessiveHalvingLayerArguments& arguments);

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* successive_halving_layer_scores_cuda(const SuccessiveHalvingLayerArguments& arguments, void* stream);
const char* successive_halving_layer_backward_cuda(const SuccessiveHalvingLayerArguments& arguments, void* stream);

}  // namespace transpool
