#pragma once

#include "operators/attention/attention.h"

namespace transpool {

struct WindowOptions {
  std::int64_t window = 1;  ///< less than the rows
  std::int64_t global = 0;
  bool causal = false;
};

/// Attention of each row from the g-th on to the `window` rows on each side and the first g ones, by flash attention, which
/// must take q, k and v (`flash_takes`). `global_rows` (B, h, g, e) are the first rows of the output, absent where g = 0.
at::Tensor window_by_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& global_rows,
                           const WindowOptions& options);

}  // namespace transpool
