#pragma once

#include "operators/element.h"

#include <cstdint>

namespace transpool {

/// Chebyshev nodes on which the rounds run where their weights are smooth in the score.
inline constexpr std::int64_t relaxed_subset_nodes = 32;
/// Rounds from one stored `a` to the next, where they are not.
inline constexpr std::int64_t relaxed_subset_window = 32;
/// Blocks that share the sums over one batch row.
inline constexpr std::int64_t relaxed_subset_parts = 32;
/// Numbers of `frame` before the sums over the columns: centre, half length, highest a, its first row.
inline constexpr std::int64_t relaxed_subset_frame = 4;

/// Device pointers and sizes of the rounds p = softmax(a / temperature), a += log(1 - p), and of their weights. S is float64
/// for float64 elements, else float32.
struct RelaxedSubsetArguments {
  const double* a = nullptr;     ///< (batch, length), finite, -1e300 in padded columns
  const void* scores = nullptr;  ///< (batch, length) S: what the weights mix, 0 in padded columns
  void* mixed = nullptr;         ///< (batch, rounds) S
  std::int64_t* top = nullptr;   ///< (batch, rounds): first row of the largest weight
  int* degree = nullptr;         ///< (batch): coefficients that a round's weights need; 0 where columns are taken one by one

  double* sums = nullptr;    ///< (batch, parts, 2, nodes): workspace of the forward pass
  double* frame = nullptr;   ///< (batch, 4 + 2 nodes): see `relaxed_subset_frame`; moments without and with the scores
  void* columns = nullptr;   ///< (batch, length, 2) S: a on the interval as [-1, 1], e^((a - highest) / temperature)
  double* shares = nullptr;  ///< (batch, rounds, nodes + 1): weight over e^(a / temperature) at the nodes; the sum of all
  void* coefficients = nullptr;   ///< (batch, rounds, nodes) S: the same as a Chebyshev series
  double* checkpoints = nullptr;  ///< (batch, ceil(rounds / window), length): a before each window
  double* leads = nullptr;  ///< (3, batch, rounds): largest a, log of the sum from it, log of the weight of all but `top`

  void* weights = nullptr;  ///< (batch, rounds, length) element

  const void* weight_gradient = nullptr;  ///< (batch, rounds, length) element
  const void* mixed_gradient = nullptr;   ///< (batch, rounds) S
  void* coefficient_gradient = nullptr;   ///< (batch, rounds, nodes) S: workspace
  double* frame_gradient = nullptr;       ///< (batch, 2, nodes): workspace
  double* window_log_weights = nullptr;   ///< (batch, window, length): workspace
  double* gradient = nullptr;             ///< (batch, length), of a
  void* score_gradient = nullptr;         ///< (batch, length) S, of the scores that are mixed

  std::int64_t batch = 0, length = 0, rounds = 0;
  double temperature = 1;
  Element element = Element::float32;
};

/// Whether one cluster holds a batch row of that length.
bool relaxed_subset_fits(std::int64_t length);

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr. The rounds come in two forms, each of which
/// leaves the batch rows of the other alone: the interpolated one goes first and says by `degree` what it has taken.
const char* relaxed_subset_interpolated_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_interpolated_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_by_column_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_by_column_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream);

/// The weights of all rounds, from what the rounds keep.
const char* relaxed_subset_weights_cuda(const RelaxedSubsetArguments& arguments, void* stream);

}  // namespace transpool
