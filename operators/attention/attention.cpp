#include "operators/attention/attention.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace transpool {

Registry<AttentionVariant>& attention_registry() {
  static Registry<AttentionVariant> registry("attention", "attention operator");
  return registry;
}

RegisterAttention::RegisterAttention(AttentionVariant variant, std::uint64_t layout) {
  check_layout(attention_registry().noun(), layout, attention_layout);
  attention_registry().add(std::move(variant));
}

void check_attention_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask) {
  const auto refuse = [](const char* name, const at::Tensor& tensor, const std::string& allowed) {
    throw UsageError(
        fmt::format("{}: shape ({}) is not allowed; allowed: {}", name, fmt::join(tensor.sizes(), ", "), allowed));
  };
  if (q.dim() != 4 || q.numel() == 0) refuse("q", q, "(B, h, n, e), each 1 or more");
  if (k.dim() != 4 || k.size(0) != q.size(0) || k.size(1) != q.size(1) || k.size(3) != q.size(3) || k.numel() == 0)
    refuse("k", k, fmt::format("({}, {}, m, {})", q.size(0), q.size(1), q.size(3)));
  if (v.dim() != 4 || v.sizes().slice(0, 3) != k.sizes().slice(0, 3))
    refuse("v", v, fmt::format("({}, {}, {}, e)", k.size(0), k.size(1), k.size(2)));
  if (mask.causal && q.size(2) != k.size(2)) refuse("k", k, fmt::format("{} keys, for causal attention", q.size(2)));
  for (const auto& [name, tensor] : {std::pair{"k", k}, std::pair{"v", v}})
    if (tensor.scalar_type() != q.scalar_type() || tensor.device() != q.device())
      throw UsageError(fmt::format("{}: {} on {} is not allowed; allowed: {} on {}, as q", name,
                                   dtype_name(tensor.scalar_type()), tensor.device().str(), dtype_name(q.scalar_type()),
                                   q.device().str()));
  if (!q.is_floating_point())
    throw UsageError("q: " + dtype_name(q.scalar_type()) + " is not allowed; allowed: a floating dtype");
  check_lengths(mask.key_lengths, k.size(2), q);
}

void refuse_other_length(const std::string& name, const at::Tensor& q, const at::Tensor& k) {
  if (q.size(2) != k.size(2))
    throw Unsupported(fmt::format("attention operator \"{}\" does not support keys of another length", name));
}

void refuse_causal(const std::string& name, const AttentionMask& mask) {
  if (mask.causal) throw Unsupported(fmt::format("attention operator \"{}\" does not support a causal mask", name));
}

void check_attention_support(const AttentionVariant& variant, const AttentionShape& shape, const std::string& device) {
  const auto& can = variant.capabilities;
  const auto refuse = [&](const std::string& what) {
    throw Unsupported(fmt::format("attention operator \"{}\" does not support {}", variant.name, what));
  };
  const auto has = [](const std::vector<std::string>& list, const std::string& name) {
    return std::find(list.begin(), list.end(), name) != list.end();
  };
  if (!has(can.devices, device)) refuse("device " + device);
  if (!has(can.dtypes, dtype_name(shape.dtype))) refuse("dtype " + dtype_name(shape.dtype));
  if (can.max_length != 0 && shape.keys > can.max_length) refuse(fmt::format("length {} > {}", shape.keys, can.max_length));
  if (shape.causal && !can.causal) refuse("a causal mask");
  if (shape.queries != shape.keys && !can.cross) refuse("keys of another length than the queries");
}

Cost attention_cost(const AttentionShape& shape, double pairs) {
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto rows = static_cast<double>(shape.batch * shape.heads) * static_cast<double>(shape.head_width) * element;
  const auto query_bytes = rows * static_cast<double>(shape.queries);
  const auto key_bytes = rows * static_cast<double>(shape.keys);
  Cost cost;
  cost.flops = 4 * pairs * static_cast<double>(shape.head_width);
  cost.backward_flops = 2 * cost.flops;
  cost.bytes_read = query_bytes + 2 * key_bytes;
  cost.bytes_written = query_bytes;
  cost.activation_bytes = query_bytes + static_cast<double>(shape.batch * shape.heads * shape.queries) * sizeof(float);
  return cost;
}

}  // namespace transpool
