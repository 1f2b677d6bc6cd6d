#include "operators/attention/attention.h"

#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// softmax(Q K^T / sqrt(e)) V written out, the n x m matrix in memory.
class FullMathAttention : public AttentionOperator {
 public:
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    auto logits = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
    const auto lowest = -std::numeric_limits<double>::infinity();
    const auto place = at::arange(k.size(2), q.options().dtype(at::kLong));
    auto masked = at::zeros({1, 1, 1, 1}, q.options().dtype(at::kBool));
    if (mask.key_lengths) masked = masked.logical_or(place.view({1, 1, 1, -1}) >= mask.key_lengths->view({-1, 1, 1, 1}));
    if (mask.causal) masked = masked.logical_or(place.view({1, 1, 1, -1}) > place.view({1, 1, -1, 1}));
    const auto weights = logits.masked_fill(masked, lowest).softmax(3);
    if (!mask.key_lengths) return at::matmul(weights, v);
    const auto empty = (*mask.key_lengths == 0).view({-1, 1, 1, 1});
    return at::matmul(weights.masked_fill(empty, 0), v);
  }
};

/// The same by blocks of queries in float64 with the log-sum-exp form, each over the keys it may see alone, as a check of
/// the matrix form.
class FullByRows : public AttentionOperator {
 public:
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    std::vector<at::Tensor> batch;
    for (std::int64_t b = 0; b < q.size(0); ++b) {
      const auto valid = mask.key_lengths ? (*mask.key_lengths)[b].item<std::int64_t>() : k.size(2);
      const auto keys = k[b].narrow(1, 0, valid).to(at::kDouble), values = v[b].narrow(1, 0, valid).to(at::kDouble);
      // A causal query sees a number of keys of its own.
      const auto step = mask.causal ? std::int64_t{1} : rows_of_block;
      std::vector<at::Tensor> blocks;
      for (std::int64_t i = 0; i < q.size(2); i += step) {
        const auto m = mask.causal ? std::min(valid, i + 1) : valid;
        const auto queries = q[b].narrow(1, i, std::min(step, q.size(2) - i)).to(at::kDouble);
        blocks.push_back(attend(queries, keys.narrow(1, 0, m), values.narrow(1, 0, m)));
      }
      batch.push_back(at::cat(blocks, 1));
    }
    return at::stack(batch).to(q.scalar_type());
  }

 private:
  static constexpr std::int64_t rows_of_block = 256;

  /// (h, r, e), (h, m, e), (h, m, e) -> (h, r, e).
  static at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    const auto logits = at::einsum("hie,hje->hij", {q, k}) * std::pow(q.size(2), -0.5);
    const auto weights = k.size(1) == 0 ? logits : (logits - logits.logsumexp(2, true)).exp();
    return at::einsum("hij,hje->hie", {weights, v});
  }
};

Cost full_math_cost(const AttentionShape& shape, const Options&) {
  const auto queries = static_cast<double>(shape.queries);
  const auto keys = static_cast<double>(shape.keys);
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const double pairs = heads * (shape.causal ? queries * (queries + 1) / 2 : queries * keys);
  auto cost = attention_cost(shape, pairs);
  // The output and, as products over contiguous heads, q, k and v; the weights, with lengths before and after the rows of
  // batch rows without any key are zeroed; which pairs are masked.
  const double rows = 2 * queries + 2 * keys;
  const double weights = (shape.masked ? 2 : 1) * queries * keys;
  cost.activation_bytes =
      heads * (rows * static_cast<double>(shape.head_width) + weights) * static_cast<double>(c10::elementSize(shape.dtype));
  cost.activation_bytes += (shape.causal ? queries : 1) * (shape.masked ? static_cast<double>(shape.batch) : 1) *
                           (shape.masked || shape.causal ? keys : 1);
  if (shape.masked) cost.activation_bytes += static_cast<double>(shape.batch);
  if (shape.causal) {
    const double extra = 4 * (heads * queries * keys - pairs) * static_cast<double>(shape.head_width);
    cost.forward_differences = {{"causal_by_mask", extra}};
    cost.backward_differences = {{"causal_by_mask", 2 * extra}};
  }
  return cost;
}

const RegisterAttention registration({
    {.name = "full_math",
     .description = "attention over all positions, softmax(Q K^T) V written out",
     .source = "arXiv 1706.03762, equation 1",
     .capabilities = {.causal = true, .cross = true}},
    [](const Options&) { return std::make_shared<FullMathAttention>(); },
    [](const Options&) { return std::make_shared<FullByRows>(); },
    full_math_cost,
});

}  // namespace
}  // namespace transpool
