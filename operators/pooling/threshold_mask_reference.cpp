#include "operators/pooling/threshold_mask_reference.h"

#include "operators/pooling/pool_by_rows.h"
#include "operators/pooling/selection.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace transpool {
namespace {

/// Positions of one row's scores by falling score, ties by position, NaN as -inf.
std::vector<std::int64_t> ranked_positions(const at::Tensor& scores) {
  const auto host = nan_as_lowest(scores.detach().to(at::kCPU, at::kDouble)).contiguous();
  const double* value = host.data_ptr<double>();
  std::vector<std::int64_t> ranked(static_cast<std::size_t>(host.numel()));
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](std::int64_t a, std::int64_t b) { return value[a] > value[b]; });
  return ranked;
}

class ThresholdMaskReference : public PoolingOperator {
 public:
  ThresholdMaskReference(const ReferenceMask& mask, const Options& options)
      : mask_(mask), temperature_(options.real("temperature")), keep_order_(options.flag("keep_order")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_by_rows(x, scores, k, lengths,
                        [this](const auto& rows, const auto& s, auto outputs, auto) { return pool_row(rows, s, outputs); });
  }

 private:
  Pooled pool_row(const at::Tensor& rows, const at::Tensor& scores, std::int64_t outputs) const {
    const auto ranked = ranked_positions(scores);
    auto best = std::vector<std::int64_t>(ranked.begin(), ranked.begin() + outputs);
    if (keep_order_) std::sort(best.begin(), best.end());
    const auto chosen = at::tensor(best, scores.options().dtype(at::kLong));
    auto kept = rows.index_select(0, chosen);
    if (outputs < scores.size(0)) {
      const auto mask = masks(bounded_scores(scores).to(at::kDouble), ranked, outputs);
      kept = kept * mask.index_select(0, chosen).to(rows.scalar_type()).unsqueeze(1);
    }
    return {kept, nan_as_lowest(scores).index_select(0, chosen), chosen};
  }

  /// Masks of one row's scores, k < their number.
  at::Tensor masks(const at::Tensor& scores, const std::vector<std::int64_t>& ranked, std::int64_t k) const {
    const auto host = scores.detach().to(at::kCPU).contiguous();
    const double* value = host.data_ptr<double>();
    const double kth = value[ranked[static_cast<std::size_t>(k - 1)]];
    FallingScores falling;
    for (const auto position : ranked)
      falling.push_back((static_cast<long double>(value[position]) - kth) / static_cast<long double>(temperature_));
    const auto z = (scores - kth) / temperature_ - static_cast<double>(mask_.threshold(falling, k));
    // On the edge of a flat piece rounding would decide on the gradient: masks next to 0 and 1 count as such.
    const auto masks_now = mask_.mask(z.detach());
    if ((masks_now - masks_now.round()).abs().max().item<double>() < 1e-11) return masks_now.round();
    return mask_.mask(z - newton_step(z));
  }

  /// (sum phi(z) - k) / sum phi'(z), which is 0 since z solves for k, but has the gradient of tau.
  at::Tensor newton_step(const at::Tensor& z) const {
    const at::AutoGradMode gradients(true);
    const auto leaf = z.detach().requires_grad_();
    const auto slopes = torch::autograd::grad({mask_.mask(leaf).sum()}, {leaf})[0].sum().item<double>();
    // So flat that the masks do not move.
    if (slopes < 1e-30) return at::zeros({}, z.options());
    const auto sum = mask_.mask(z).sum();
    return (sum - sum.detach()) / slopes;
  }

  ReferenceMask mask_;
  double temperature_;
  bool keep_order_;
};

}  // namespace

long double bisected_threshold(const FallingScores& z, std::int64_t k, long double (*phi)(long double z)) {
  const auto sum = [&](long double threshold) {
    return std::accumulate(z.begin(), z.end(), 0.0L,
                           [&](long double so_far, long double each) { return so_far + phi(each - threshold); });
  };
  // The largest threshold with `enough` true; enough is true below it and false above.
  const auto last = [&](const auto& enough) {
    long double low = z.back() - 50, high = z.front() + 50;
    for (int step = 0; step < 120; ++step) {
      const auto middle = (low + high) / 2;
      (enough(middle) ? low : high) = middle;
    }
    return (low + high) / 2;
  };
  const auto goal = static_cast<long double>(k);
  const auto above = last([&](long double threshold) { return sum(threshold) >= goal; });
  const auto below = last([&](long double threshold) { return sum(threshold) > goal; });
  return (above + below) / 2;
}

std::shared_ptr<const PoolingOperator> threshold_mask_reference(const ReferenceMask& mask, const Options& options) {
  return std::make_shared<ThresholdMaskReference>(mask, options);
}

}  // namespace transpool
