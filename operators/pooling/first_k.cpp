#include "operators/pooling/pool_by_rows.h"
#include "operators/pooling/selection.h"

namespace transpool {
namespace {

/// Keeps the first k valid rows.
class FirstK : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    auto positions = at::arange(k, scores.options().dtype(at::kLong)).expand({x.size(0), k});
    const auto rows = x.narrow(1, 0, k);
    const auto kept = nan_as_lowest(scores.narrow(1, 0, k).detach());
    if (!lengths) return {rows.clone(at::MemoryFormat::Contiguous), kept, positions.contiguous()};
    const auto absent = valid_positions(*lengths, k).logical_not();
    return {rows.masked_fill(absent.unsqueeze(2), 0), kept.masked_fill(absent, 0), positions.masked_fill(absent, -1)};
  }

  bool passes_score_gradient() const override { return false; }
};

/// The same, row by row.
class FirstKReference : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_by_rows(x, scores, k, lengths,
                        [](const at::Tensor& rows, const at::Tensor& scored, std::int64_t outputs, std::int64_t) -> Pooled {
                          return {rows.narrow(0, 0, outputs), nan_as_lowest(scored.detach()).narrow(0, 0, outputs),
                                  at::arange(outputs, scored.options().dtype(at::kLong))};
                        });
  }

  bool passes_score_gradient() const override { return false; }
};

Cost first_k_cost(const PoolingShape& shape, const Options&) {
  const auto rows = static_cast<double>(shape.batch * shape.pooled_length);
  const double kept = rows * static_cast<double>(shape.width) * static_cast<double>(c10::elementSize(shape.dtype));
  Cost cost;
  cost.bytes_read = kept + rows * sizeof(float);
  cost.bytes_written = kept + rows * (sizeof(float) + sizeof(std::int64_t));
  cost.activation_bytes = cost.bytes_written + rows;  // the outputs, and which of them are padding
  return cost;
}

const RegisterPooling registration({
    {.name = "first_k",
     .description = "the first k rows, whatever their scores",
     .source = "control, of no paper: the lead of the document"},
    [](const Options&) { return std::make_shared<FirstK>(); },
    [](const Options&) { return std::make_shared<FirstKReference>(); },
    first_k_cost,
});

}  // namespace
}  // namespace transpool
