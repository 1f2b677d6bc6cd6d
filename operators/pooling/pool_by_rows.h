#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

/// Runs a reference one batch row at a time: `pool_row` maps the valid rows x (L, d) and scores (L,) of one batch row to its
/// first `outputs` = min(k, L) outputs, which may be 0; they are padded to k. `batch_row` is the row's index.
using RowPooling =
    std::function<Pooled(const at::Tensor& x, const at::Tensor& scores, std::int64_t outputs, std::int64_t batch_row)>;
Pooled pool_by_rows(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                    const RowPooling& pool_row);

}  // namespace transpool
