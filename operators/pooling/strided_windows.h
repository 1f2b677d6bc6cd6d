#pragma once

#include "operators/pooling/pooling.h"

#include <functional>

namespace transpool {

/// Rows (B, k, w) int64 of each window, w = ceil(n / k), -1 where a window has fewer. The windows of a batch row part its
/// L = length rows evenly among k' = min(k, L) outputs: window i covers rows floor(i L / k') to floor((i + 1) L / k').
/// Later windows are empty. `like` gives B and the device.
at::Tensor strided_windows(const at::Tensor& like, std::int64_t n, std::int64_t k, const std::optional<at::Tensor>& lengths);

/// First and last row (the latter excluded) of window i where `valid` rows are parted among `count`; both at least 1.
std::pair<std::int64_t, std::int64_t> strided_window(std::int64_t i, std::int64_t valid, std::int64_t count);

/// What one window gives: a row (d), a score () and the place in the window that stands for it.
struct WindowResult {
  at::Tensor row, score;
  std::int64_t place;
};

/// Pools window by window, for references: `pool` gets the rows (w, d) and detached scores (w) of one window. Outputs past
/// min(k, length) are zero with position -1.
Pooled pool_window_by_window(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths,
                             const std::function<WindowResult(const at::Tensor& rows, const at::Tensor& scores)>& pool);

}  // namespace transpool
