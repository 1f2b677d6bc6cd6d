#include "operators/pooling/strided_windows.h"

#include <algorithm>

namespace transpool {

at::Tensor strided_windows(const at::Tensor& like, std::int64_t n, std::int64_t k,
                           const std::optional<at::Tensor>& lengths) {
  const auto index = like.options().dtype(at::kLong);
  const auto valid = lengths ? lengths->unsqueeze(1) : at::full({like.size(0), 1}, n, index);
  const auto count = valid.clamp(1, k);
  const auto bounds = at::floor_divide(at::arange(k + 1, index).unsqueeze(0) * valid, count);
  const auto begin = bounds.narrow(1, 0, k).unsqueeze(2);
  const auto rows = begin + at::arange((n + k - 1) / k, index);
  const auto end = at::minimum(bounds.narrow(1, 1, k), valid).unsqueeze(2);
  return rows.masked_fill(rows >= end, -1);
}

std::pair<std::int64_t, std::int64_t> strided_window(std::int64_t i, std::int64_t valid, std::int64_t count) {
  return {i * valid / count, (i + 1) * valid / count};
}

Pooled pool_window_by_window(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths,
                             const std::function<WindowResult(const at::Tensor& rows, const at::Tensor& scores)>& pool) {
  check_pooling_arguments(x, scores, k, lengths);
  std::vector<at::Tensor> values, kept;
  auto positions = at::full({x.size(0), k}, -1, scores.options().dtype(at::kLong));
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    const auto valid = lengths ? (*lengths)[b].item<std::int64_t>() : x.size(1);
    for (std::int64_t i = 0; i < k; ++i) {
      if (i >= valid) {
        values.push_back(at::zeros({x.size(2)}, x.options()));
        kept.push_back(at::zeros({}, scores.options()));
        continue;
      }
      const auto [begin, end] = strided_window(i, valid, std::min(k, valid));
      const auto result = pool(x[b].slice(0, begin, end), scores[b].detach().slice(0, begin, end));
      values.push_back(result.row);
      kept.push_back(result.score);
      positions[b][i] = begin + result.place;
    }
  }
  return {at::stack(values).view({x.size(0), k, x.size(2)}), at::stack(kept).view({x.size(0), k}), positions};
}

}  // namespace transpool
