#pragma once

#include "operators/pooling/weighted_gather_cuda.h"

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of Successive Halving over `batch` rows of `length` scores, padded to slots * 2^rounds. The
/// leaves of an output are numbered by who they were in each round: bit r is set for the weaker of round r.
struct SuccessiveHalvingArguments {
  const void* x = nullptr;                ///< (batch, length, width)
  const void* scores = nullptr;           ///< (batch, length), float32 or float64, any value
  const std::int64_t* lengths = nullptr;  ///< (batch); null: all rows are valid
  std::int64_t batch = 0, length = 0, slots = 0, width = 0;
  int rounds = 0;
  Element element = Element::float32;  ///< of x
  bool float64_scores = false;
  double base = 20;
  bool mirror = true, keep_order = true;
  double epsilon = 0;  ///< weights of an output that sum to no more are left out; 0: all are used

  void* workspace = nullptr;          ///< tournament_workspace(arguments) bytes, at a multiple of 256
  void* leaves = nullptr;             ///< (batch, slots, 2^rounds), leaf_bytes(element) each: source row and weight
  void* values = nullptr;             ///< (batch, slots, width)
  void* slot_scores = nullptr;        ///< (batch, slots), dtype of the scores
  std::int64_t* positions = nullptr;  ///< (batch, slots)

  const void* values_gradient = nullptr;  ///< (batch, slots, width); backward only, as all below
  const void* slot_gradient = nullptr;    ///< (batch, slots), dtype of the scores; null: zero
  void* x_gradient = nullptr;             ///< (batch, length, width), every row is written
  void* score_gradient = nullptr;         ///< (batch, length), dtype of the scores, every score is written
  double* tree = nullptr;                 ///< tree_workspace(rounds) doubles an output where that is not 0
};

/// The longest padded row that the tournament takes.
std::int64_t longest_tournament_cuda();

/// Bytes of workspace that the tournament needs on the current device. Only sizes, types and `keep_order` count.
std::int64_t tournament_workspace(const SuccessiveHalvingArguments& arguments);

/// Bytes of one leaf: its weight is float64 for float64 x, else float32.
std::int64_t leaf_bytes(Element element);

/// Doubles of global memory that the backward pass needs for each output; 0 where shared memory holds its tree.
std::int64_t tree_workspace(int rounds);

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* successive_halving_tournament_cuda(const SuccessiveHalvingArguments& arguments, void* stream);
const char* successive_halving_gather_cuda(const SuccessiveHalvingArguments& arguments, void* stream);
const char* successive_halving_backward_cuda(const SuccessiveHalvingArguments& arguments, void* stream);

}  // namespace transpool
