#include "operators/pooling/strided_windows.h"

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

}  // namespace transpool
