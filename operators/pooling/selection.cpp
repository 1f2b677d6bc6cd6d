#include "operators/pooling/selection.h"

#include <limits>

namespace transpool {

namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();

}  // namespace

at::Tensor nan_as_lowest(const at::Tensor& scores) { return at::nan_to_num(scores, lowest, -lowest, lowest); }

at::Tensor bounded_scores(const at::Tensor& scores) { return nan_as_lowest(scores).clamp(-score_bound, score_bound); }

at::Tensor comparable_scores(const at::Tensor& scores) { return scores.to(at::kFloat).to(at::kDouble); }

at::Tensor rankable_scores(const at::Tensor& scores, const std::optional<at::Tensor>& lengths) {
  auto ranked = nan_as_lowest(scores.detach());
  if (lengths) ranked = ranked.masked_fill_(valid_positions(*lengths, scores.size(1)).logical_not_(), lowest);
  return ranked;
}

at::Tensor select_top_rows(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                           bool keep_order) {
  const auto n = scores.size(1);
  auto order = std::get<1>(rankable_scores(scores, lengths).sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
  auto top = order.narrow(1, 0, k);
  if (lengths) top = top.masked_fill(top >= lengths->unsqueeze(1), n);
  if (keep_order) top = std::get<0>(top.sort(1));
  return lengths ? top.masked_fill(top == n, -1) : top.contiguous();
}

at::Tensor gather_rows(const at::Tensor& x, const at::Tensor& positions) {
  auto index = positions.clamp_min(0);
  auto missing = positions < 0;
  for (std::int64_t extra = 2; extra < x.dim(); ++extra) {
    index = index.unsqueeze(-1);
    missing = missing.unsqueeze(-1);
  }
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape[1] = positions.size(1);
  return x.gather(1, index.expand(shape)).masked_fill(missing, 0);
}

}  // namespace transpool
