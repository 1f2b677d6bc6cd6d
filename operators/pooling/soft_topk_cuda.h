#pragma once

#include "operators/element.h"

#include <cstdint>

namespace transpool {

/// Rows of a chunk, whose targets of any weight lie in one band.
inline constexpr std::int64_t soft_topk_chunk = 64;
/// Rows over which a block sums the plan.
inline constexpr std::int64_t soft_topk_rows = 128;

/// Device pointers and sizes of the plan that softmax(levels * height + potentials) spreads each row over the targets, whose
/// heights are targets - 1, ..., 1, 0. Rows stand by rank, except where a source row is said. No plan is stored: what is
/// kept of a row is its largest logit and the sum. S is float64 for float64 elements, else float32.
struct SoftTopkArguments {
  const double* levels = nullptr;         ///< (batch, length), falling from 0; padded rows last
  const std::int64_t* order = nullptr;    ///< (batch, length): the source row of each rank
  const std::int64_t* ranks = nullptr;    ///< (batch, length): the rank of each source row
  const std::int64_t* lengths = nullptr;  ///< (batch), or null where all rows are valid
  const double* mass = nullptr;           ///< (batch, targets): what each target takes
  double* potentials = nullptr;           ///< (batch, targets), -infinity where the target takes nothing

  int* converged = nullptr;   ///< (batch): set to 0; not 0 once the sums are the mass to rounding, and no step moves them
  double* norms = nullptr;    ///< (batch, length, 2): a row's largest logit, and the logarithm of the sum from it
  int* bands = nullptr;       ///< (batch, ceil(length / chunk), 2): first target and end of what has any weight
  double* partial = nullptr;  ///< (batch, ceil(length / rows), targets)
  double* sums = nullptr;     ///< (batch, targets): what each target gets; backward: of the flow
  double* system = nullptr;   ///< (batch, targets + 1, targets): the Laplacian; last, the right-hand side
  double* answer = nullptr;   ///< (batch, targets)

  void* weights = nullptr;                ///< (batch, targets - 1, length) element, source rows
  const void* weight_gradient = nullptr;  ///< (batch, targets - 1, length) element, source rows
  double* means = nullptr;                ///< (2, batch, length): mean of the gains and of the heights
  double* gradient = nullptr;             ///< (batch, length), of the levels; source rows

  std::int64_t batch = 0, length = 0, targets = 0;
  double ridge = 0;
  Element element = Element::float32;
};

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
/// Norms, bands and sums of the potentials; `converged` once they hold.
const char* soft_topk_sums_cuda(const SoftTopkArguments& arguments, void* stream);
/// potentials += log(mass) - log(sums).
const char* soft_topk_sinkhorn_cuda(const SoftTopkArguments& arguments, void* stream);
/// Solves for `answer` the system of the plan and mass - sums, or sums alone where `flow`.
const char* soft_topk_solve_cuda(const SoftTopkArguments& arguments, bool flow, void* stream);
/// potentials += a damped step along `answer`.
const char* soft_topk_newton_cuda(const SoftTopkArguments& arguments, void* stream);
/// The plan's ranks over their sums.
const char* soft_topk_weights_cuda(const SoftTopkArguments& arguments, void* stream);
/// Sums of the flow that the weights' gradient makes, and what later gives the gradient of the levels from `answer`.
const char* soft_topk_flow_cuda(const SoftTopkArguments& arguments, void* stream);
const char* soft_topk_gradient_cuda(const SoftTopkArguments& arguments, void* stream);

}  // namespace transpool
