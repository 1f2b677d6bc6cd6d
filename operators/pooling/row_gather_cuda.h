#pragma once

#include "operators/pooling/weighted_gather_cuda.h"

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of one gather of rows, each multiplied by its gate, and of its backward pass. Gates are rounded
/// to the dtype of x first. No row may be named twice in one batch row.
struct RowGatherArguments {
  const void* x = nullptr;                  ///< (batch, length, width)
  const std::int64_t* positions = nullptr;  ///< (batch, slots); -1 names no row: zeros
  const double* gates = nullptr;            ///< (batch, slots); null: all are 1
  void* out = nullptr;                      ///< (batch, slots, width); forward only
  std::int64_t batch = 0, length = 0, slots = 0, width = 0;
  Element element = Element::float32;

  const void* out_gradient = nullptr;   ///< (batch, slots, width); backward only, as all below
  void* x_gradient = nullptr;           ///< (batch, length, width); null: not wanted
  double* dots = nullptr;               ///< (batch, slots): <x row, out gradient> where there is one; null: not wanted
  const void* scores = nullptr;         ///< (batch, length), where the gates are the scores; as the two below
  const void* kept_gradient = nullptr;  ///< (batch, slots), dtype of the scores: gradient of the kept scores
  void* score_gradient = nullptr;       ///< (batch, length), dtype of the scores; null: not wanted
  bool float64_scores = false;
};

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* gather_rows_forward_cuda(const RowGatherArguments& arguments, void* stream);
const char* gather_rows_backward_cuda(const RowGatherArguments& arguments, void* stream);

}  // namespace transpool
