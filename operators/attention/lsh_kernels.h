#pragma once

#include "operators/attention/attention.h"

namespace transpool {

/// How many buckets a row is hashed to: `first`, or the pairs of two hashes. Each even, or one.
struct LshBuckets {
  std::int64_t first = 1, second = 1;

  std::int64_t all() const { return first * second; }
  std::int64_t planes() const { return first / 2 + second / 2; }
};

struct LshRounds {
  std::int64_t rounds = 1;
  std::int64_t chunk = 1;  ///< rows of a chunk of sorted rows
  LshBuckets buckets = {};
  bool causal = false;
};

/// The bucket of each row in each round, (B, h, r, n) int32, by q (B, h, n, e) of any floating dtype and planes (h, r, e,
/// planes of the buckets) float32, of numbers that both half types hold. Of each hash the largest of the products and of
/// their negatives, with products and sums in float32, whatever the dtype of q. Empty where this build or device has no
/// kernel for it.
std::optional<at::Tensor> hash_by_kernel(const at::Tensor& q, const at::Tensor& planes, const LshBuckets& buckets);

/// Whether there are kernels for these: bfloat16 or float16 on a CUDA device of compute capability 8.0 or more, chunks of 32
/// or 64, not more than the rows, head width 32, 64 or 128, up to 8 rounds.
bool lsh_kernels_take(const at::Tensor& q, const at::Tensor& v, const LshRounds& rounds);

/// The same of a shape, as cost models see it.
bool lsh_kernels_take(const AttentionShape& shape, const LshRounds& rounds);

/// LSH attention given the buckets of the rows (B, h, r, n) int32, absent where there is one. No logits, masks or sorted
/// copies are written; rounds leave their outputs. `k` gets a gradient of zeros. Rows that are not valid are zero.
at::Tensor lsh_by_kernels(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const std::optional<at::Tensor>& hashes, const std::optional<at::Tensor>& lengths,
                          const LshRounds& rounds);

}  // namespace transpool
