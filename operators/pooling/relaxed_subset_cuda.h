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
/// Numbers of `frame` before the sums over the columns: centre, half length, highest a, its first row, rows that are valid.
inline constexpr std::int64_t relaxed_subset_frame = 5;

/// Columns of a series of rows in memory, of which those past the width are 0.
constexpr std::int64_t relaxed_subset_stride(std::int64_t width) { return (width + 127) / 128 * 128; }

/// Device pointers and sizes of the rounds p = softmax(a / temperature), a += log(1 - p), and of their weights. S is float64
/// for float64 elements, else float32.
struct RelaxedSubsetArguments {
  const double* a = nullptr;     ///< (batch, length), finite, -1e300 in padded columns
  const void* scores = nullptr;  ///< (batch, length) S: what the weights mix, 0 in padded columns
  void* mixed = nullptr;         ///< (batch, rounds) S
  std::int64_t* top = nullptr;   ///< (batch, rounds): first row of the largest weight
  int* degree = nullptr;         ///< (batch): coefficients that a round's weights need; 0 where columns are taken one by one

  double* sums = nullptr;    ///< (batch, parts, 2, nodes): workspace of the forward pass
  double* frame = nullptr;   ///< (batch, 5 + 2 nodes): see `relaxed_subset_frame`; moments without and with the scores
  void* columns = nullptr;   ///< (batch, length, 2) S: a on the interval as [-1, 1], e^((a - highest) / temperature)
  double* shares = nullptr;  ///< (batch, rounds, nodes + 1): weight over e^(a / temperature) at the nodes; the sum of all
  void* coefficients = nullptr;   ///< (batch, rounds, nodes) S: the same as a Chebyshev series
  double* checkpoints = nullptr;  ///< (batch, ceil(rounds / window), length): a before each window
  double* leads = nullptr;  ///< (3, batch, rounds): largest a, log of the sum from it, log of the weight of all but `top`

  const void* x = nullptr;      ///< (batch, length, width) element: the rows
  void* values = nullptr;       ///< (batch, rounds, width) element
  void* row_moments = nullptr;  ///< (batch, nodes, stride) S: sums over the rows of the polynomials times x
  void* weights = nullptr;      ///< (batch, rounds, length) element, of batch rows of degree 0: workspace

  const void* values_gradient = nullptr;  ///< (batch, rounds, width) element
  const void* mixed_gradient = nullptr;   ///< (batch, rounds) S
  void* x_gradient = nullptr;             ///< (batch, length, width) element; null: not wanted
  void* round_moments = nullptr;    ///< (batch, nodes, stride) S: sums of the coefficients times values_gradient: workspace
  void* polynomial_dots = nullptr;  ///< (batch, nodes, length) S, of x with round_moments: workspace; null: not wanted
  void* weight_gradient = nullptr;  ///< (batch, rounds, length) element, of batch rows of degree 0: workspace
  void* coefficient_gradient = nullptr;  ///< (batch, rounds, nodes) S: workspace; null: not wanted
  double* frame_gradient = nullptr;      ///< (batch, 2, nodes): workspace
  double* window_log_weights = nullptr;  ///< (batch, window, length): workspace
  double* gradient = nullptr;            ///< (batch, length), of a
  void* score_gradient = nullptr;        ///< (batch, length) S, of the scores that are mixed

  void* partial_moments = nullptr;  ///< `relaxed_subset_partial_moments` S: workspace of either moments

  std::int64_t batch = 0, length = 0, rounds = 0, width = 0;
  std::int64_t stride = 0;  ///< `relaxed_subset_stride`
  double temperature = 1;
  Element element = Element::float32;
};

/// Whether one cluster holds a batch row of that length.
bool relaxed_subset_fits(std::int64_t length);

/// Numbers that either moments, those of the rows or of the rounds, take while their sums are apart. On the current device.
std::int64_t relaxed_subset_partial_moments(const RelaxedSubsetArguments& arguments, bool rounds);

/// All launch on `stream` (a cudaStream_t) and return a CUDA error text, or nullptr. The rounds come in two forms, each of
/// which leaves the batch rows of the other alone: the interpolated one goes first and says by `degree` what it has taken.
const char* relaxed_subset_interpolated_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_by_column_cuda(const RelaxedSubsetArguments& arguments, void* stream);

/// The interpolated form: W = C Phi^T of the coefficients C and the polynomials Phi of each column, and no W is needed.
/// row_moments = Phi^T x, of every batch row. To be called right after the rounds, beside which it may run.
const char* relaxed_subset_row_moments_cuda(const RelaxedSubsetArguments& arguments, void* stream);
/// values = C row_moments.
const char* relaxed_subset_series_values_cuda(const RelaxedSubsetArguments& arguments, void* stream);
/// round_moments = C^T values_gradient, and coefficient_gradient, through the values and the mixed scores.
const char* relaxed_subset_round_moments_cuda(const RelaxedSubsetArguments& arguments, void* stream);
/// The rounds backwards, from the gradient of the coefficients to frame_gradient.
const char* relaxed_subset_interpolated_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream);
/// x_gradient and polynomial_dots. `beside_rounds`: called right after the rounds backwards, beside which it may then run.
const char* relaxed_subset_series_backward_cuda(const RelaxedSubsetArguments& arguments, bool beside_rounds, void* stream);
/// The gradients of a and of the scores, from polynomial_dots and frame_gradient.
const char* relaxed_subset_column_gradient_cuda(const RelaxedSubsetArguments& arguments, void* stream);

/// The other form: weights from what the rounds keep; with them values, x_gradient; weight_gradient; the rounds backwards.
const char* relaxed_subset_weights_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_values_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_x_gradient_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_weight_gradient_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_by_column_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream);

}  // namespace transpool
