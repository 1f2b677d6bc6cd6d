#include "operators/attention/scaled_dot_product.h"

namespace transpool {

at::Tensor scaled_dot_product(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask) {
  if (!mask.key_lengths) return at::scaled_dot_product_attention(q, k, v, {}, 0.0, mask.causal);
  const auto keys = k.size(2);
  // A row without any key would be 0/0 in some kernels: it attends to key 0 and is zeroed afterwards.
  const auto& lengths = *mask.key_lengths;
  auto allowed = valid_positions(lengths.clamp_min(1), keys).view({-1, 1, 1, keys});
  if (mask.causal) {
    const auto place = at::arange(keys, lengths.options());
    allowed = allowed & (place.view({1, 1, 1, keys}) <= place.view({1, 1, keys, 1}));
  }
  const auto out = at::scaled_dot_product_attention(q, k, v, allowed.expand({q.size(0), 1, q.size(2), keys}));
  return out.masked_fill((lengths == 0).view({-1, 1, 1, 1}), 0);
}

double mask_bytes(const AttentionShape& shape) {
  if (!shape.masked) return 0;
  const auto pairs = static_cast<double>(shape.queries) * static_cast<double>(shape.keys);
  return static_cast<double>(shape.batch) * (pairs * static_cast<double>(c10::elementSize(shape.dtype)) + 1);
}

}  // namespace transpool
