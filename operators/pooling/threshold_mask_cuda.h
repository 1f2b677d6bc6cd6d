#pragma once

#include "operators/pooling/row_selection_cuda.h"

#include <map>
#include <string>

namespace transpool {

/// Masks that are all this near to 0 and 1 are hard. Where scores tie at a cap, their slopes would else hang on the last
/// digits of tau, and be those of a piece narrower than the scores' own rounding.
inline constexpr double nearly_hard = 1e-11;

/// Device pointers and numbers of one pass over masks phi((s - tau) / T) of scored rows, with sum k = slots.
struct ThresholdMaskArguments {
  RowSelectionArguments rows;  ///< scores, lengths, sizes, positions; in the forward pass also the kept scores
  double temperature = 1, zero = 0, one = 0, bound = 0;  ///< T, where phi is 0 and 1 to rounding, the scores' bound
  double hard_gap = 0;                                   ///< scores of this distance behind the k-th leave all masks 0 or 1
  double* gates = nullptr;     ///< (batch, slots) masks of the kept rows; 0 where the position is -1; forward only
  double* solution = nullptr;  ///< (batch, 3): the k-th score, tau / T relative to it, sum of phi' (0: hard masks)

  const double* gate_gradient = nullptr;  ///< (batch, slots); backward only, as all below
  const void* kept_gradient = nullptr;    ///< (batch, slots), dtype of the scores
  void* score_gradient = nullptr;         ///< (batch, length), dtype of the scores; every element is written
};

/// A member's kernels. They launch on `stream` (a cudaStream_t) and return a CUDA error text, or nullptr.
struct ThresholdMaskKernel {
  const char* (*forward)(const ThresholdMaskArguments& arguments, void* stream);
  const char* (*backward)(const ThresholdMaskArguments& arguments, void* stream);
};

/// Kernels by the names of their members. A member without one runs through ATen.
std::map<std::string, ThresholdMaskKernel>& threshold_mask_kernels();

}  // namespace transpool
