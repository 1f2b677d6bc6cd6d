#include "operators/attention/scaled_dot_product.h"

#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// Attention within chunks of m rows. What is left of a length that m does not divide is a shorter chunk of its own, so
/// nothing is padded. Chunks become batch rows by views alone where q, k, v are views of (B, n, h, e).
class BlockwiseAttention : public AttentionOperator {
 public:
  explicit BlockwiseAttention(const Options& options) : chunk_(options.integer("chunk")) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    refuse_other_length("blockwise", q, k);
    const auto n = q.size(2);
    const auto whole = n / chunk_ * chunk_;
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

  std::string backend(const at::Device&) const override { return "sdpa"; }

 private:
  static at::Tensor chunks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask,
                           std::int64_t m) {
    const auto batch = q.size(0);
    const auto heads = q.size(1);
    const auto n = q.size(2);
    const auto count = n / m;
    const auto split = [&](const at::Tensor& t) {
      return t.transpose(1, 2).reshape({batch * count, m, heads, t.size(3)}).transpose(1, 2);
    };
    AttentionMask per_chunk{.key_lengths = {}, .causal = mask.causal};
    if (mask.key_lengths) {
      const auto starts = at::arange(count, mask.key_lengths->options()) * m;
      per_chunk.key_lengths = (mask.key_lengths->unsqueeze(1) - starts).clamp(0, m).flatten();
    }
    const auto out = scaled_dot_product(split(q), split(k), split(v), per_chunk);
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

Cost blockwise_cost(const AttentionShape& shape, const Options& options) {
  const auto chunk = options.integer("chunk");
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto whole = static_cast<double>(shape.queries / chunk);
  const auto m = static_cast<double>(chunk);
  const auto tail = static_cast<double>(shape.queries % chunk);
  const auto pairs_of = [&](double rows) { return shape.causal ? rows * (rows + 1) / 2 : rows * rows; };
  auto cost = attention_cost(shape, heads * (whole * pairs_of(m) + pairs_of(tail)));
  const auto row_bytes = heads * static_cast<double>(shape.head_width) * static_cast<double>(c10::elementSize(shape.dtype));
  if (shape.masked) {
    AttentionShape part = shape;
    part.batch = shape.batch * (shape.queries / chunk);
    part.queries = part.keys = chunk;
    cost.activation_bytes += mask_bytes(part);
    part.batch = shape.batch;
    part.queries = part.keys = shape.queries % chunk;
    cost.activation_bytes += mask_bytes(part);
  }
  const bool cut = whole > 0 && tail > 0;
  // The parts that are joined, or with lengths the output before the rows without any key are zeroed.
  if (cut || shape.masked) cost.activation_bytes += cost.bytes_written;
  // Cut off from the tail of its batch row, no chunk is a view any more.
  if (cut && shape.batch > 1) cost.activation_bytes += 3 * whole * m * row_bytes;
  if (shape.causal && shape.masked) {
    const double extra =
        4 * heads * (whole * (m * m - pairs_of(m)) + tail * tail - pairs_of(tail)) * static_cast<double>(shape.head_width);
    cost.forward_differences = {{"causal_by_mask", extra}};
    cost.backward_differences = {{"causal_by_mask", 2 * extra}};
  }
  return cost;
}

const RegisterAttention registration({
    {.name = "blockwise",
     .description = "attention within chunks of the sequence",
     .source = "arXiv 2009.05169, section 2 (blockwise baseline)",
     .options =
         {{.name = "chunk", .type = OptionType::integer, .fallback = 512, .meaning = "rows of one chunk, m", .minimum = 1}},
     .capabilities = {.causal = true}},
    [](const Options& options) { return std::make_shared<BlockwiseAttention>(options); },
    [](const Options& options) { return std::make_shared<BlockDiagonal>(options); },
    blockwise_cost,
});

}  // namespace
}  // namespace transpool
