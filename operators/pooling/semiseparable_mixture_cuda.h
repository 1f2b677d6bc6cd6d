#pragma once

#include "operators/pooling/weighted_gather_cuda.h"

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of one mixture with weights exp(-sharpness |s_t - s_j|) (semiseparable_mixture.h). "C" below is
/// float64 for float64, else float32.
struct SemiseparableArguments {
  const void* x = nullptr;                ///< (batch, length, width)
  const void* scores = nullptr;           ///< (batch, length) C, as the operator got them
  const std::int64_t* lengths = nullptr;  ///< (batch), or none
  std::int64_t batch = 0, length = 0, slots = 0, width = 0;
  double sharpness = 0;
  double bound = 0;        ///< scores are clamped to +-bound
  bool two_sided = false;  ///< else output t weighs only the rows of rank t and after
  Element element = Element::float32;

  // State that both passes read.
  void* clean = nullptr;         ///< (batch, length) C: bounded scores
  std::int32_t* top = nullptr;   ///< (batch, slots): source row of each rank
  std::int32_t* rank = nullptr;  ///< (batch, length): the rank where it is under slots; -1 past it, -2 in padded rows
  void* decay = nullptr;  ///< (batch, slots) C: weight of rank t + 1 in output t; -1 for equal scores and the last rank
  void* scale = nullptr;  ///< (batch, slots) C: 1 / sum of the weights
  void* tilt = nullptr;   ///< (batch, slots) C: sum of the weights of lower scores less that of higher ones
  void* mean = nullptr;   ///< (batch, slots, width) C: values before they are rounded; may be `values`
  void* slope = nullptr;  ///< (batch, slots, width) C: derivative of the unscaled values in -sharpness s_t; two-sided
  void* score_slope = nullptr;  ///< (batch, slots) C: the same of the mixed scores

  // Forward.
  void* values = nullptr;             ///< (batch, slots, width)
  void* mixed_scores = nullptr;       ///< (batch, slots) C
  std::int64_t* positions = nullptr;  ///< (batch, slots)
  void* rest = nullptr;               ///< (batch, splits, 2, width) C: workspace
  std::int64_t splits = 0;            ///< parts into which the rows past the top are cut

  // Backward.
  const void* gradient = nullptr;  ///< (batch, slots, width), of the values
  void* x_gradient = nullptr;      ///< (batch, length, width)
  void* score_gradient = nullptr;  ///< (batch, length) C
  void* flow = nullptr;            ///< (batch, slots, width) C: workspace; two-sided
  void* dots = nullptr;            ///< (batch, slabs, slots) C: workspace
  void* last_flow = nullptr;       ///< (batch, 2, width) C: workspace
  void* last_dot = nullptr;        ///< (batch, slabs, 2) C: workspace
};

/// Parts into which the rows past the top are cut, and the most slabs of columns.
std::int64_t semiseparable_splits(std::int64_t batch, std::int64_t length);
std::int64_t semiseparable_slabs(std::int64_t width);

/// Whether `semiseparable_rank_cuda` takes these sizes.
bool semiseparable_ranks(std::int64_t length, std::int64_t slots);

/// Writes clean, top and rank. Launch on `stream` (a cudaStream_t); return a CUDA error text, or nullptr, as those below.
const char* semiseparable_rank_cuda(const SemiseparableArguments& arguments, void* stream);
/// From clean, top and rank: everything else of the state, and the results.
const char* semiseparable_forward_cuda(const SemiseparableArguments& arguments, void* stream);
const char* semiseparable_backward_cuda(const SemiseparableArguments& arguments, void* stream);

}  // namespace transpool
