#pragma once

#include "operators/element.h"

#include <cstdint>

namespace transpool {

/// A tensor (B, h, n, e) whose last stride is 1; the others count elements.
struct LshTensor {
  void* data = nullptr;
  std::int64_t batch_stride = 0, head_stride = 0, row_stride = 0;
};

constexpr int lsh_most_rounds = 8;

/// Sizes, device pointers and what the kernels exchange. A chunk has `chunk` of the rows that a round sorted by bucket; the
/// rows of a chunk see those of their own and of the one before.
struct LshArguments {
  std::int64_t batch = 0, heads = 0, rows = 0, width = 0, rounds = 0, chunk = 0;
  std::int64_t first_buckets = 1, second_buckets = 1;  ///< of the two hashes: even, or one
  bool causal = false;
  Element element = Element::bfloat16;
  const std::int64_t* lengths = nullptr;  ///< (B); nullptr: all rows are valid
  LshTensor q, v, out, out_gradient, q_gradient, v_gradient;
  const float* planes = nullptr;       ///< (h, r, e, first / 2 + second / 2), of numbers that `element` holds
  std::int32_t* hashes = nullptr;      ///< (B, h, r, n)
  std::int32_t* order = nullptr;       ///< (B, h, r, n): the sorted rows; those that are not valid come last
  std::uint16_t* chunks = nullptr;     ///< (B, h, n, 8): the chunk of a row in each round, zero from `rounds` on
  void* round_values = nullptr;        ///< (B, h, r, n, e): the output of each round, or its gradient of v
  void* round_q_gradients = nullptr;   ///< (B, h, r, n, e)
  float* round_normalisers = nullptr;  ///< (B, h, r, n)
  float* normalisers = nullptr;        ///< (B, h, n): log-sum-exp over all rounds
  float* out_products = nullptr;       ///< (B, h, n): <out, its gradient>; backward only
};

/// How many of the `chunks` of a sequence a block of the backward pass walks through, given the heads and rounds of all
/// batch rows. A run repeats the chunk at either end, but there should be blocks enough for the device.
constexpr std::int64_t lsh_run_length(std::int64_t chunks, std::int64_t sequences) {
  constexpr std::int64_t enough_blocks = 1536;
  std::int64_t length = 16;
  while (length > 4 && (chunks + length - 1) / length * sequences < enough_blocks) length /= 2;
  return length;
}

/// Whether lsh_hash_cuda takes the shape, and whether the sort and the attention take it too.
bool lsh_hash_takes(std::int64_t width);
bool lsh_kernels_take(std::int64_t rows, std::int64_t width, std::int64_t rounds, std::int64_t chunk, std::int64_t buckets);

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* lsh_hash_cuda(const LshArguments& arguments, void* stream);
const char* lsh_sort_cuda(const LshArguments& arguments, void* stream);
const char* lsh_forward_cuda(const LshArguments& arguments, void* stream);   ///< half types only
const char* lsh_backward_cuda(const LshArguments& arguments, void* stream);  ///< half types only

}  // namespace transpool
