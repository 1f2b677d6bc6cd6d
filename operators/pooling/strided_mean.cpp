#include "operators/pooling/pooling.h"
#include "operators/pooling/selection.h"
#include "operators/pooling/strided_windows.h"
#include "operators/pooling/weighted_gather.h"

namespace transpool {
namespace {

/// Means of windows that part the valid rows evenly; scores are the windows' mean scores. All rows of a window weigh the
/// same, so that its position is its first row.
class StridedMean : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto rows = strided_windows(x, x.size(1), k, lengths);
    const auto present = rows >= 0;
    const auto share = present / present.sum(2, /*keepdim=*/true).clamp_min(1).to(at::kDouble);
    const auto window_scores = gather_rows(bounded_scores(scores.detach()), rows.flatten(1)).view_as(rows);
    return {weighted_gather(x, rows, share.to(accumulation_dtype(x.scalar_type())), /*every_row_named=*/!lengths),
            (window_scores * share.to(scores.scalar_type())).sum(2), rows.select(2, 0).contiguous()};
  }

  bool passes_score_gradient() const override { return false; }
  std::string backend(const at::Device& device) const override { return weighted_gather_backend(device); }
};

/// The same, window by window.
class StridedMeanReference : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_window_by_window(x, scores, k, lengths, [](const at::Tensor& rows, const at::Tensor& window_scores) {
      return WindowResult{rows.mean(0), bounded_scores(window_scores).mean(), 0};
    });
  }

  bool passes_score_gradient() const override { return false; }
};

Cost strided_mean_cost(const PoolingShape& shape, const Options&) {
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  const auto window = static_cast<double>((shape.length + shape.pooled_length - 1) / shape.pooled_length);
  const auto width = static_cast<double>(shape.width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto accumulator = static_cast<double>(c10::elementSize(accumulation_dtype(shape.dtype)));
  const auto inputs = static_cast<double>(shape.batch * shape.length);
  Cost cost;
  cost.flops = 2 * outputs * window * width;
  cost.backward_flops = cost.flops;
  cost.backward_differences["gradient of the constant weights"] = cost.flops;
  cost.bytes_read = inputs * (width * element + sizeof(float));
  cost.bytes_written = outputs * (width * element + sizeof(float) + sizeof(std::int64_t));
  cost.activation_bytes = outputs * window * (sizeof(std::int64_t) + accumulator) + cost.bytes_written;
  return cost;
}

const RegisterPooling registration({
    {.name = "strided_mean",
     .description = "means of k windows that part the rows evenly, whatever their scores",
     .source = "Funnel-Transformer, arXiv 2006.03236, mean pooling; control"},
    [](const Options&) { return std::make_shared<StridedMean>(); },
    [](const Options&) { return std::make_shared<StridedMeanReference>(); },
    strided_mean_cost,
});

}  // namespace
}  // namespace transpool
