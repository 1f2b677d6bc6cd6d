#pragma once

#include "operators/attention/attention.h"
#include "operators/attention/flash_cuda.h"

namespace transpool {

/// Whether LibTorch's flash attention takes these: bfloat16 or float16 on a CUDA device of compute capability 8.0 or more,
/// one head width for all three that 8 divides, up to 256. Never in a build without CUDA.
bool flash_takes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

/// The same of a shape, as cost models see it.
bool flash_takes(const AttentionShape& shape);

/// (B, h, n, e) seen as sequences of rows without a copy where the strides allow it: (B h, n, 1, e) where each head's rows
/// stand together, (B, n, h, e) else. One form for q, k and v of a call.
struct SequenceForm {
  std::int64_t batch, heads, rows;
  bool by_head;

  static SequenceForm of(const at::Tensor& q);
  std::int64_t sequences() const { return by_head ? batch * heads : batch; }
  std::int64_t sequences_per_length() const { return by_head ? heads : 1; }
  at::Tensor sequences_of(const at::Tensor& t) const;   ///< (sequences, rows, heads in it, e)
  at::Tensor packed(const at::Tensor& t) const;         ///< (sequences rows, heads in it, e)
  at::Tensor heads_of(const at::Tensor& t) const;       ///< back to (B, h, n, e), from either; a view
  at::Tensor normaliser_of(const at::Tensor& t) const;  ///< (heads in it, sequences rows) to (B, h, n); a view
};

/// The bounds of segments as flash attention's variable-length form takes them, int32 (segments + 1) each. Written on the
/// device: no synchronisation.
struct SegmentBounds {
  at::Tensor queries, keys;
};
SegmentBounds segment_bounds(Segments kind, const SequenceForm& form, const std::optional<at::Tensor>& lengths,
                             std::int64_t chunk, std::int64_t global, const at::Tensor& like);

/// The arguments of a variable-length call besides its tensors. Windows count from the last row of a segment, as causal
/// does.
struct SegmentCall {
  SegmentBounds bounds;
  std::int64_t longest_queries, longest_keys;
  bool causal = false;
  std::optional<std::int64_t> left = {}, right = {};
};

struct SegmentResult {
  at::Tensor out;         ///< (rows, heads, e); zero for queries that were paired with nothing
  at::Tensor normaliser;  ///< (heads, rows); +inf for them
  at::Tensor rng_state, unused;
};

/// Differentiable in q, k and v through `out`.
SegmentResult attend_segments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const SegmentCall& call);

/// Gradients of q, k, v. With the output and log-sum-exp of several calls over disjoint keys, joined, in `result`, this is
/// the call's part of the joint gradients. Sums in an order that varies, unless deterministic algorithms are asked for.
std::array<at::Tensor, 3> attend_segments_backward(const at::Tensor& out_gradient, const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& v, const SegmentResult& result,
                                                   const SegmentCall& call);

/// Joins the attention over other keys into `result`.
void join(SegmentResult& result, const SegmentResult& other);

}  // namespace transpool
