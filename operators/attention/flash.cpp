#include "operators/attention/flash.h"

#ifdef TRANSPOOL_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <limits>

namespace transpool {
namespace {

[[maybe_unused]] bool half_type(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

[[maybe_unused]] bool width_fits(std::int64_t width) { return width % 8 == 0 && width <= 256; }

/// Flash reads 16 bytes at a time.
bool aligned(const at::Tensor& t) {
  if (t.stride(-1) != 1 || reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 != 0) return false;
  for (std::int64_t d = 0; d + 1 < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) % 8 != 0) return false;
  return true;
}

}  // namespace

bool flash_takes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
#ifdef TRANSPOOL_CUDA
  if (!q.is_cuda() || !half_type(q.scalar_type()) || !width_fits(q.size(3)) || v.size(3) != q.size(3)) return false;
  if (q.numel() == 0 || k.numel() == 0) return false;
  return at::cuda::getDeviceProperties(q.get_device())->major >= 8;
#else
  static_cast<void>(q), static_cast<void>(k), static_cast<void>(v);
  return false;
#endif
}

bool flash_takes(const AttentionShape& shape) {
#ifdef TRANSPOOL_CUDA
  return shape.device == at::kCUDA && half_type(shape.dtype) && width_fits(shape.head_width);
#else
  static_cast<void>(shape);
  return false;
#endif
}

SequenceForm SequenceForm::of(const at::Tensor& q) { return {q.size(0), q.size(1), q.size(2), q.is_contiguous()}; }

at::Tensor SequenceForm::sequences_of(const at::Tensor& t) const {
  const auto seen = by_head ? t.reshape({batch * heads, rows, 1, t.size(3)}) : t.transpose(1, 2);
  return aligned(seen) ? seen : seen.contiguous();
}

at::Tensor SequenceForm::packed(const at::Tensor& t) const { return sequences_of(t).flatten(0, 1); }

at::Tensor SequenceForm::heads_of(const at::Tensor& t) const {
  return by_head ? t.view({batch, heads, rows, t.size(-1)}) : t.view({batch, rows, heads, t.size(-1)}).transpose(1, 2);
}

at::Tensor SequenceForm::normaliser_of(const at::Tensor& t) const {
  return by_head ? t.view({batch, heads, rows}) : t.view({heads, batch, rows}).transpose(0, 1);
}

SegmentBounds segment_bounds(Segments kind, const SequenceForm& form, const std::optional<at::Tensor>& lengths,
                             std::int64_t chunk, std::int64_t global, const at::Tensor& like) {
#ifdef TRANSPOOL_CUDA
  TORCH_CHECK(form.sequences() * form.rows < std::numeric_limits<int>::max(), "attention over ",
              form.sequences() * form.rows, " rows is not possible; allowed: fewer than 2^31");
  const c10::cuda::CUDAGuard guard(like.device());
  const auto chunks = (form.rows + chunk - 1) / chunk;
  const auto options = like.options().dtype(at::kInt);
  const auto size = form.sequences() * chunks * segment_count(kind) + 1;
  SegmentBounds bounds{at::empty({size}, options), at::empty({size}, options)};
  const auto valid = lengths ? lengths->contiguous() : at::Tensor();
  const char* error = write_segments_cuda({.lengths = lengths ? valid.const_data_ptr<std::int64_t>() : nullptr,
                                           .sequences = form.sequences(),
                                           .repeat = form.sequences_per_length(),
                                           .n = form.rows,
                                           .chunk = chunk,
                                           .key_rows = kind == Segments::global ? global : form.rows,
                                           .global = global,
                                           .form = kind,
                                           .query_starts = bounds.queries.mutable_data_ptr<int>(),
                                           .key_starts = bounds.keys.mutable_data_ptr<int>()},
                                          c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "segments of attention: ", error);
  return bounds;
#else
  static_cast<void>(kind), static_cast<void>(form), static_cast<void>(lengths), static_cast<void>(chunk);
  static_cast<void>(global), static_cast<void>(like);
  throw Unsupported("flash attention needs a build with CUDA");
#endif
}

SegmentResult attend_segments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const SegmentCall& call) {
  auto [out, normaliser, rng_state, unused, mask] =
      at::_flash_attention_forward(q, k, v, call.bounds.queries, call.bounds.keys, call.longest_queries, call.longest_keys,
                                   0.0, call.causal, false, std::nullopt, call.left, call.right);
  return {out, normaliser, rng_state, unused};
}

std::array<at::Tensor, 3> attend_segments_backward(const at::Tensor& out_gradient, const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& v, const SegmentResult& result,
                                                   const SegmentCall& call) {
  auto [q_gradient, k_gradient, v_gradient] = at::_flash_attention_backward(
      out_gradient, q, k, v, result.out, result.normaliser, call.bounds.queries, call.bounds.keys, call.longest_queries,
      call.longest_keys, 0.0, call.causal, result.rng_state, result.unused, std::nullopt, call.left, call.right);
  return {q_gradient, k_gradient, v_gradient};
}

void join(SegmentResult& result, const SegmentResult& other) {
#ifdef TRANSPOOL_CUDA
  const c10::cuda::CUDAGuard guard(result.out.device());
  const auto joint = at::empty_like(result.normaliser);
  const char* error = join_attentions_cuda({.out = result.out.mutable_data_ptr(),
                                            .normaliser = result.normaliser.const_data_ptr<float>(),
                                            .other = other.out.const_data_ptr(),
                                            .other_normaliser = other.normaliser.const_data_ptr<float>(),
                                            .joint_normaliser = joint.mutable_data_ptr<float>(),
                                            .rows = result.out.size(0),
                                            .heads = result.out.size(1),
                                            .width = result.out.size(2),
                                            .bfloat16 = result.out.scalar_type() == at::kBFloat16},
                                           c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "joining attentions: ", error);
  result.normaliser = joint;
#else
  static_cast<void>(result), static_cast<void>(other);
  throw Unsupported("flash attention needs a build with CUDA");
#endif
}

}  // namespace transpool
