#include "operators/pooling/pool_by_rows.h"

#include <algorithm>

namespace transpool {

Pooled pool_by_rows(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                    const RowPooling& pool_row) {
  check_pooling_arguments(x, scores, k, lengths);
  std::vector<at::Tensor> values, kept, positions;
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    const auto valid = lengths ? (*lengths)[b].item<std::int64_t>() : x.size(1);
    const auto outputs = std::min(k, valid);
    const auto row = pool_row(x[b].narrow(0, 0, valid), scores[b].narrow(0, 0, valid), outputs, b);
    const auto missing = k - outputs;
    values.push_back(at::constant_pad_nd(row.values, {0, 0, 0, missing}));
    kept.push_back(at::constant_pad_nd(row.scores, {0, missing}));
    positions.push_back(at::constant_pad_nd(row.positions, {0, missing}, -1));
  }
  return {at::stack(values), at::stack(kept), at::stack(positions)};
}

}  // namespace transpool
