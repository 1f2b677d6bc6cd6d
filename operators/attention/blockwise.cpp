#include "operators/attention/flash.h"
#include "operators/attention/scaled_dot_product.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// Attention within chunks of m rows. What is left of a length that m does not divide is a shorter chunk of its own, so
/// nothing is padded. Chunks become batch rows by views alone, be q, k, v contiguous or views of (B, n, h, e).
///
/// Whole chunks without lengths are one call of scaled_dot_product_attention, which prefers cuDNN's kernels on the devices
/// where they are the fastest. Lengths and short last chunks would need a mask or a second call and a copy there: flash
/// attention's variable-length form takes them as they are, and skips the keys that are not valid.
class BlockwiseAttention : public AttentionOperator {
 public:
  explicit BlockwiseAttention(const Options& options) : chunk_(options.integer("chunk")) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    refuse_other_length("blockwise", q, k);
    const auto n = q.size(2);
    const auto whole = n / chunk_ * chunk_;
    if ((mask.key_lengths || (whole != n && whole > 0)) && flash_takes(q, k, v)) return segments(q, k, v, mask);
    if (whole == n) return chunks(q, k, v, mask, chunk_);
    const auto lengths_from = [&](std::int64_t start) {
      AttentionMask part = mask;
      if (part.key_lengths) part.key_lengths = (*part.key_lengths - start).clamp_min(0);
      return part;
    };
    const auto tail = chunks(q.narrow(2, whole, n - whole), k.narrow(2, whole, n - whole), v.narrow(2, whole, n - whole),
                             lengths_from(whole), n - whole);
    if (whole == 0) return tail;
    const auto head = chunks(q.narrow(2, 0, whole), k.narrow(2, 0, whole), v.narrow(2, 0, whole), lengths_from(0), chunk_);
    return at::cat({head, tail}, 2);
  }

  std::string backend(const at::Device& device) const override {
    return device.is_cuda() ? "sdpa; flash varlen for half types with lengths or a short chunk" : "sdpa";
  }

 private:
  at::Tensor segments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask) const {
    const auto form = SequenceForm::of(q);
    const auto queries = form.packed(q), keys = form.packed(k), values = form.packed(v);
    const auto longest = std::min(chunk_, form.rows);
    const auto attend = [&](Segments kind, bool causal) {
      const auto bounds = segment_bounds(kind, form, mask.key_lengths, chunk_, 0, q);
      return attend_segments(queries, keys, values, {bounds, longest, longest, causal}).out;
    };
    if (!mask.key_lengths) return form.heads_of(attend(Segments::whole, mask.causal));
    if (!mask.causal) return form.heads_of(attend(Segments::keys, false));
    // Flash lines causal segments up at their ends, so that valid keys make a segment with valid queries alone. Padded
    // queries come after all of them.
    return form.heads_of(attend(Segments::aligned, true) + attend(Segments::padded, false));
  }

  static at::Tensor chunks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask,
                           std::int64_t m) {
    const auto batch = q.size(0);
    const auto heads = q.size(1);
    const auto n = q.size(2);
    const auto count = n / m;
    // Contiguous q, k, v: the chunks of a head stand as its heads do. Every head of a batch row has its length.
    const bool by_head = q.is_contiguous() && k.is_contiguous() && v.is_contiguous() && !mask.key_lengths;
    const auto split = [&](const at::Tensor& t) {
      if (by_head) return t.view({batch * heads, count, m, t.size(3)});
      return t.transpose(1, 2).reshape({batch * count, m, heads, t.size(3)}).transpose(1, 2);
    };
    AttentionMask per_chunk{.key_lengths = {}, .causal = mask.causal};
    if (mask.key_lengths) {
      const auto starts = at::arange(count, mask.key_lengths->options()) * m;
      per_chunk.key_lengths = (mask.key_lengths->unsqueeze(1) - starts).clamp(0, m).flatten();
    }
    const auto out = scaled_dot_product(split(q), split(k), split(v), per_chunk);
    if (by_head) return out.reshape({batch, heads, n, v.size(3)});
    return out.transpose(1, 2).reshape({batch, n, heads, v.size(3)}).transpose(1, 2);
  }

  std::int64_t chunk_;
};

/// The definition: full attention in which a key of another chunk counts nothing.
class BlockDiagonal : public AttentionOperator {
 public:
  explicit BlockDiagonal(const Options& options) : chunk_(options.integer("chunk")) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    const auto place = at::arange(q.size(2), q.options().dtype(at::kLong));
    const auto block = at::floor_divide(place, chunk_);
    auto barred = (block.unsqueeze(0) != block.unsqueeze(1)).view({1, 1, q.size(2), q.size(2)});
    if (mask.causal) barred = barred.logical_or((place.unsqueeze(0) > place.unsqueeze(1)).view_as(barred));
    if (mask.key_lengths) barred = barred.logical_or(place.view({1, 1, 1, -1}) >= mask.key_lengths->view({-1, 1, 1, 1}));
    const auto logits = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
    const auto weights = logits.masked_fill(barred, -std::numeric_limits<double>::infinity()).softmax(3).nan_to_num(0.0);
    return at::matmul(weights, v);
  }

 private:
  std::int64_t chunk_;
};

/// Bytes kept beyond those of full attention where chunks are cut, masked and joined by ATen.
double chunk_bytes(const AttentionShape& shape, std::int64_t chunk, double output_bytes) {
  double bytes = 0;
  const auto whole = shape.queries / chunk, tail = shape.queries % chunk;
  if (shape.masked) {
    AttentionShape part = shape;
    part.batch = shape.batch * whole;
    part.queries = part.keys = chunk;
    bytes += mask_bytes(part);
    part.batch = shape.batch;
    part.queries = part.keys = tail;
    bytes += mask_bytes(part);
  }
  const bool cut = whole > 0 && tail > 0;
  // The parts that are joined, or with lengths the output before the rows without any key are zeroed.
  if (cut || shape.masked) bytes += output_bytes;
  // Cut off from the tail of its batch row, no chunk is a view any more.
  const auto row_bytes =
      shape.batch * shape.heads * shape.head_width * static_cast<std::int64_t>(c10::elementSize(shape.dtype));
  if (cut && shape.batch > 1) bytes += static_cast<double>(3 * whole * chunk * row_bytes);
  return bytes;
}

Cost blockwise_cost(const AttentionShape& shape, const Options& options) {
  const auto chunk = options.integer("chunk");
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto whole = static_cast<double>(shape.queries / chunk);
  const auto m = static_cast<double>(chunk);
  const auto tail = static_cast<double>(shape.queries % chunk);
  const auto pairs_of = [&](double rows) { return shape.causal ? rows * (rows + 1) / 2 : rows * rows; };
  auto cost = attention_cost(shape, heads * (whole * pairs_of(m) + pairs_of(tail)));
  const double executed = [&] {
    if (flash_takes(shape) && (shape.masked || (whole > 0 && tail > 0))) {
      // Each row is counted with a whole chunk of keys, or its half; with causal lengths also that of the padded queries.
      const auto longest = std::min(m, static_cast<double>(shape.queries));
      const auto padded = shape.causal && shape.masked ? longest * longest : 0.0;
      return static_cast<double>(shape.queries) / longest * (pairs_of(longest) + padded);
    }
    return shape.causal && shape.masked ? whole * m * m + tail * tail : whole * pairs_of(m) + pairs_of(tail);
  }();
  const double extra = 4 * heads * (executed - whole * pairs_of(m) - pairs_of(tail)) * static_cast<double>(shape.head_width);
  const char* cause = flash_takes(shape) ? "segments_counted_whole" : "causal_by_mask";
  cost.forward_differences = {{cause, extra}};
  cost.backward_differences = {{cause, 2 * extra}};
  if (!flash_takes(shape)) cost.activation_bytes += chunk_bytes(shape, chunk, cost.bytes_written);
  return cost;
}

const RegisterAttention registration({
    {.name = "blockwise",
     .description = "attention within chunks of the sequence",
     .source = "arXiv 2009.05169, blockwise baseline",
     .options =
         {{.name = "chunk", .type = OptionType::integer, .fallback = 512, .meaning = "rows of one chunk, m", .minimum = 1}},
     .capabilities = {.causal = true}},
    [](const Options& options) { return std::make_shared<BlockwiseAttention>(options); },
    [](const Options& options) { return std::make_shared<BlockDiagonal>(options); },
    blockwise_cost,
});

}  // namespace
}  // namespace transpool
