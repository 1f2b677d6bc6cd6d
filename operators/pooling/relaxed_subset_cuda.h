#pragma once

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of the rounds p = softmax(a / temperature), a += log(1 - p). S is float64 or float32.
struct RelaxedSubsetArguments {
  const double* a = nullptr;              ///< (batch, length), finite, -1e300 in padded columns
  void* log_weights = nullptr;            ///< (batch, rounds, length) S: log p, at least -1e30
  void* weights = nullptr;                ///< (batch, rounds, length) S
  std::int64_t* top = nullptr;            ///< (batch, rounds): first row of the largest weight
  double* log_rest = nullptr;             ///< (batch, rounds): logarithm of the weight of all rows but `top`
  const void* weight_gradient = nullptr;  ///< (batch, rounds, length) S; backward only
  double* gradient = nullptr;             ///< (batch, length), of a; backward only
  std::int64_t batch = 0, length = 0, rounds = 0;
  double temperature = 1;
  bool float64_weights = false;
};

/// Whether one cluster holds a batch row of that length.
bool relaxed_subset_fits(std::int64_t length);

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* relaxed_subset_forward_cuda(const RelaxedSubsetArguments& arguments, void* stream);
const char* relaxed_subset_backward_cuda(const RelaxedSubsetArguments& arguments, void* stream);

}  // namespace transpool
