#include "operators/pooling/pooling.h"
#include "operators/pooling/selection.h"
#include "operators/pooling/strided_windows.h"

#include <algorithm>
#include <limits>

namespace transpool {
namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// Elementwise maxima of windows that part the valid rows evenly, ties to the first; scores are the windows' highest. The
/// position is the row that gives most elements, ties to the first.
class StridedMax : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto rows = strided_windows(x, x.size(1), k, lengths);
    const auto absent = rows < 0;
    const auto winners = window_argmax(x.detach(), rows, absent);  // (B, k, d): place in the window
    const auto wins = at::zeros(rows.sizes(), rows.options()).scatter_add_(2, winners, at::ones_like(winners));
    const auto empty = absent.select(2, 0).unsqueeze(2);
    const auto winning_rows = rows.gather(2, winners).clamp_min_(0);
    const auto window_scores = gather_rows(nan_as_lowest(scores.detach()), rows.flatten(1)).view_as(rows);
    return {x.gather(1, winning_rows).masked_fill(empty, 0),
            window_scores.masked_fill(absent, lowest).amax(2).masked_fill(empty.squeeze(2), 0),
            rows.gather(2, wins.argmax(2, /*keepdim=*/true)).squeeze(2)};
  }

  bool passes_score_gradient() const override { return false; }

 private:
  static at::Tensor window_argmax(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& absent) {
    const auto windows = gather_rows(x, rows.flatten(1)).view({x.size(0), rows.size(1), rows.size(2), x.size(2)});
    return windows.masked_fill(absent.unsqueeze(3), lowest).argmax(2);
  }
};

/// The same, window by window.
class StridedMaxReference : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_window_by_window(x, scores, k, lengths, [](const at::Tensor& rows, const at::Tensor& window_scores) {
      const auto [maxima, winners] = rows.max(0);
      return WindowResult{maxima, nan_as_lowest(window_scores).max(), most_frequent(winners)};
    });
  }

  bool passes_score_gradient() const override { return false; }

 private:
  static std::int64_t most_frequent(const at::Tensor& places) {
    const auto host = places.cpu().contiguous();
    std::map<std::int64_t, std::int64_t> counts;
    for (std::int64_t i = 0; i < host.numel(); ++i) ++counts[host.data_ptr<std::int64_t>()[i]];
    return std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  }
};

Cost strided_max_cost(const PoolingShape& shape, const Options&) {
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  const auto width = static_cast<double>(shape.width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  Cost cost;
  cost.bytes_read = static_cast<double>(shape.batch * shape.length) * (width * element + sizeof(float));
  cost.bytes_written = outputs * (width * element + sizeof(float) + sizeof(std::int64_t));
  cost.activation_bytes = outputs * (width * sizeof(std::int64_t) + 1) + cost.bytes_written;
  return cost;
}

const RegisterPooling registration({
    {.name = "strided_max",
     .description = "elementwise maxima of k windows that part the rows evenly, whatever their scores",
     .source = "Funnel-Transformer, arXiv 2006.03236, max pooling; control"},
    [](const Options&) { return std::make_shared<StridedMax>(); },
    [](const Options&) { return std::make_shared<StridedMaxReference>(); },
    strided_max_cost,
});

}  // namespace
}  // namespace transpool
