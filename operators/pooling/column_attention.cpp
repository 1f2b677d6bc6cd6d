#include "operators/pooling/pool_by_rows.h"
#include "operators/pooling/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace transpool {
namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// Elements of the attention matrix that are held at a time, over the whole batch.
constexpr std::int64_t block_elements = std::int64_t{1} << 24;

/// Significance (B, n) float64: the attention that each row gets from all rows, one head on x itself; 0 past the length.
/// In float64 since near-uniform or near-diagonal attention gives all rows almost the same, and the selection is discrete.
at::Tensor column_significance(const at::Tensor& x, const std::optional<at::Tensor>& lengths) {
  const auto batch = x.size(0), n = x.size(1);
  auto rows = x.detach().to(at::kDouble);
  auto significance = at::zeros({batch, n}, rows.options());
  at::Tensor absent;
  if (lengths) {
    absent = valid_positions(*lengths, n).logical_not();
    rows = rows.masked_fill(absent.unsqueeze(2), 0);
  }
  const auto keys = rows.transpose(1, 2);
  const auto block = std::clamp<std::int64_t>(block_elements / (batch * n), 1, n);
  for (std::int64_t begin = 0; begin < n; begin += block) {
    const auto count = std::min(block, n - begin);
    auto logits = at::bmm(rows.narrow(1, begin, count) / std::sqrt(static_cast<double>(x.size(2))), keys);
    if (lengths) logits.masked_fill_(absent.unsqueeze(1), lowest);
    auto attention = logits.softmax(2);
    if (lengths) attention.masked_fill_(absent.narrow(1, begin, count).unsqueeze(2), 0);
    significance += attention.sum(1);
  }
  return significance;
}

/// Keeps the rows that get most attention, in source order. A row whose significance is NaN ranks last.
class ColumnAttention : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto positions = select_top_rows(column_significance(x, lengths), k, lengths, /*keep_order=*/true);
    return {gather_rows(x, positions), gather_rows(nan_as_lowest(scores), positions).detach(), positions};
  }

  bool passes_score_gradient() const override { return false; }
};

/// The same with each batch row's whole attention matrix, from logits and their log-sum-exp.
class ColumnAttentionReference : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_by_rows(x, scores, k, lengths, pool_row);
  }

  bool passes_score_gradient() const override { return false; }

 private:
  static Pooled pool_row(const at::Tensor& x, const at::Tensor& scores, std::int64_t outputs, std::int64_t) {
    const auto rows = x.detach().to(at::kDouble);
    const auto logits = at::mm(rows, rows.t()) / std::sqrt(static_cast<double>(x.size(1)));
    const auto significance = (logits - logits.logsumexp(1, /*keepdim=*/true)).exp().sum(0);
    const auto ranked = significance.argsort(/*stable=*/true, 0, /*descending=*/true);
    const auto chosen = std::get<0>(ranked.narrow(0, 0, outputs).sort());
    return {x.index_select(0, chosen), nan_as_lowest(scores.detach()).index_select(0, chosen), chosen};
  }
};

Cost column_attention_cost(const PoolingShape& shape, const Options&) {
  const auto inputs = static_cast<double>(shape.batch * shape.length);
  const auto rows = static_cast<double>(shape.batch * shape.pooled_length);
  const auto width = static_cast<double>(shape.width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  Cost cost;
  cost.flops = 2 * inputs * static_cast<double>(shape.length) * width;
  cost.bytes_read = inputs * width * element + rows * sizeof(float);
  cost.bytes_written = rows * (width * element + sizeof(float) + sizeof(std::int64_t));
  cost.activation_bytes = rows * (width * element + 2 * sizeof(std::int64_t) + 1 + sizeof(float));
  return cost;
}

const RegisterPooling registration({
    {.name = "column_attention",
     .description = "the k rows that get most attention from all rows, x attending to itself in one head",
     .source = "PoWER-BERT, arXiv 2001.08950, significance score of its extract layers; control"},
    [](const Options&) { return std::make_shared<ColumnAttention>(); },
    [](const Options&) { return std::make_shared<ColumnAttentionReference>(); },
    column_attention_cost,
});

}  // namespace
}  // namespace transpool
