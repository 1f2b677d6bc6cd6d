#include "operators/pooling/pooling.h"

#include <fmt/format.h>
#include <fmt/ostream.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace transpool {

Registry<PoolingVariant>& pooling_registry() {
  static Registry<PoolingVariant> registry("pooling", "pooling operator");
  return registry;
}

RegisterPooling::RegisterPooling(PoolingVariant variant, std::uint64_t layout) {
  check_layout(pooling_registry().noun(), layout, pooling_layout);
  pooling_registry().add(std::move(variant));
}

void check_pooling_arguments(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths) {
  if (x.dim() != 3 || !x.is_floating_point())
    throw UsageError(fmt::format("x: {} dimensions of {} are not allowed; allowed: floating (B, n, d)", x.dim(),
                                 c10::toString(x.scalar_type())));
  if (scores.dim() != 2 || scores.size(0) != x.size(0) || scores.size(1) != x.size(1))
    throw UsageError(fmt::format("scores: shape [{}] is not allowed; allowed: ({}, {})", fmt::join(scores.sizes(), ", "),
                                 x.size(0), x.size(1)));
  if (scores.scalar_type() != at::kFloat && scores.scalar_type() != at::kDouble)
    throw UsageError(
        fmt::format("scores: {} is not allowed; allowed: float32, float64", c10::toString(scores.scalar_type())));
  if (scores.device() != x.device())
    throw UsageError(fmt::format("scores: on {}, but x is on {}", scores.device().str(), x.device().str()));
  if (x.size(0) < 1) throw UsageError("x: batch 0 is not allowed; allowed: 1 or more");
  if (k < 1 || k > x.size(1)) throw UsageError(fmt::format("k: {} is out of range; allowed: 1 to n = {}", k, x.size(1)));
  check_lengths(lengths, x.size(1), x);
}

void check_pooling_support(const PoolingVariant& variant, const PoolingShape& shape, const std::string& device) {
  const auto& can = variant.capabilities;
  const auto refuse = [&](const std::string& what) {
    throw Unsupported(fmt::format("pooling operator \"{}\" does not support {}", variant.name, what));
  };
  const auto has = [](const std::vector<std::string>& list, const std::string& name) {
    return std::find(list.begin(), list.end(), name) != list.end();
  };
  if (!has(can.devices, device)) refuse("device " + device);
  if (!has(can.dtypes, dtype_name(shape.dtype))) refuse("dtype " + dtype_name(shape.dtype));
  if (can.max_length != 0 && shape.length > can.max_length)
    refuse(fmt::format("length {} > {}", shape.length, can.max_length));
  if (can.pooled_length_divides_length && shape.length % shape.pooled_length != 0)
    refuse(fmt::format("a pooled length {} that does not divide {}", shape.pooled_length, shape.length));
}

std::optional<at::Tensor> pooled_lengths(const std::optional<at::Tensor>& lengths, std::int64_t k) {
  if (!lengths) return std::nullopt;
  return lengths->clamp_max(k);
}

}  // namespace transpool
