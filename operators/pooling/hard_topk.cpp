#include "operators/pooling/kept_rows.h"
#include "operators/pooling/pool_by_rows.h"
#include "operators/pooling/selection.h"

namespace transpool {
namespace {

/// Gathers the k highest rows. `gated` multiplies each by its score, `straight_through` has that product's gradient but
/// the bare row as its value. Infinite scores gate by 1 and 0 instead, so that no row becomes NaN.
class HardTopk : public PoolingOperator {
 public:
  explicit HardTopk(const Options& options) : gradient_(options.text("gradient")), keep_order_(options.flag("keep_order")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    if (auto pooled = keep_rows_by_kernel(x, scores, k, lengths, {gate(), keep_order_})) return *pooled;
    const auto positions = select_top_rows(scores, k, lengths, keep_order_);
    const auto rows = gather_rows(x, positions);
    const auto kept = gather_rows(nan_as_lowest(scores), positions);
    if (gradient_ == "none") return {rows, kept.detach(), positions};
    const auto factor = at::nan_to_num(kept, 0.0, 1.0, 0.0).to(x.scalar_type()).unsqueeze(2);
    if (gradient_ == "gated") return {rows * factor, kept, positions};
    return {rows * (1 + (factor - factor.detach())), kept, positions};
  }

  bool passes_score_gradient() const override { return gradient_ != "none"; }
  std::string backend(const at::Device& device) const override { return kept_rows_backend(device); }

 private:
  RowGate gate() const {
    if (gradient_ == "none") return RowGate::none;
    return gradient_ == "gated" ? RowGate::score : RowGate::straight_through;
  }

  std::string gradient_;
  bool keep_order_;
};

/// The same by sorting (score, position) pairs of one batch row at a time.
class HardTopkReference : public PoolingOperator {
 public:
  explicit HardTopkReference(const Options& options)
      : gradient_(options.text("gradient")), keep_order_(options.flag("keep_order")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_by_rows(x, scores, k, lengths,
                        [this](const auto& rows, const auto& s, auto outputs, auto) { return pool_row(rows, s, outputs); });
  }

 private:
  Pooled pool_row(const at::Tensor& rows, const at::Tensor& scores, std::int64_t outputs) const {
    const auto chosen = at::tensor(best_positions(scores, outputs), scores.options().dtype(at::kLong));
    const auto gate = nan_as_lowest(scores).index_select(0, chosen);
    const auto kept = rows.index_select(0, chosen);
    if (gradient_ != "gated") return {kept, gate, chosen};
    const auto factor = at::where(gate.isfinite(), gate, at::where(gate > 0, at::ones_like(gate), at::zeros_like(gate)));
    return {kept * factor.to(rows.scalar_type()).unsqueeze(1), gate, chosen};
  }

  std::vector<std::int64_t> best_positions(const at::Tensor& scores, std::int64_t outputs) const {
    const auto host = scores.detach().to(at::kCPU, at::kDouble).contiguous();
    std::vector<std::pair<double, std::int64_t>> ranked;
    for (std::int64_t i = 0; i < scores.size(0); ++i) {
      const double score = host.data_ptr<double>()[i];
      ranked.emplace_back(std::isnan(score) ? std::numeric_limits<double>::infinity() : -score, i);
    }
    std::sort(ranked.begin(), ranked.end());
    std::vector<std::int64_t> best;
    for (const auto& [score, position] : ranked)
      if (static_cast<std::int64_t>(best.size()) < outputs) best.push_back(position);
    if (keep_order_) std::sort(best.begin(), best.end());
    return best;
  }

  std::string gradient_;
  bool keep_order_;
};

Cost hard_topk_cost(const PoolingShape& shape, const Options& options) {
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto rows = static_cast<double>(shape.batch * shape.pooled_length);
  const auto inputs = static_cast<double>(shape.batch * shape.length);
  const double kept = rows * static_cast<double>(shape.width) * element;
  Cost cost;
  cost.bytes_read = kept + inputs * sizeof(float);
  cost.bytes_written = kept + rows * (sizeof(float) + sizeof(std::int64_t));
  // The outputs; the index that x is gathered at, and which rows it leaves empty.
  cost.activation_bytes = cost.bytes_written + rows * (sizeof(std::int64_t) + 1);
  // The rows before they are gated and the gate; the scores' index and gaps; the scores without NaN, and where that was.
  if (options.text("gradient") != "none")
    cost.activation_bytes += kept + rows * (element + sizeof(std::int64_t) + 1) + inputs * (sizeof(float) + 1);
  return cost;
}

const RegisterPooling registration({
    {.name = "hard_topk",
     .description = "the k highest rows, unchanged or gated by their scores",
     .source = "arXiv 2009.05169, the selection that its trainable pooling relaxes",
     .options = {{.name = "gradient",
                  .type = OptionType::choice,
                  .fallback = "gated",
                  .meaning = "how the scores learn: not at all, by x * s, or by that gradient with the bare rows as values",
                  .choices = {"none", "gated", "straight_through"}},
                 {.name = "keep_order",
                  .type = OptionType::boolean,
                  .fallback = true,
                  .meaning = "rows in source order, else by falling score"}}},
    [](const Options& options) { return std::make_shared<HardTopk>(options); },
    [](const Options& options) { return std::make_shared<HardTopkReference>(options); },
    hard_topk_cost,
});

}  // namespace
}  // namespace transpool
