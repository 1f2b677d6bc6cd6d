#include "operators/tensor.h"

#include <fmt/format.h>

#include <map>
#include <sstream>

namespace transpool {
namespace {

const std::map<std::string, at::ScalarType>& dtypes() {
  static const std::map<std::string, at::ScalarType> known = {
      {"float64", at::kDouble}, {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};
  return known;
}

}  // namespace

at::ScalarType dtype_from_name(const std::string& name, const Where& where) {
  std::vector<std::string> known;
  for (const auto& [key, dtype] : dtypes()) {
    if (key == name) return dtype;
    known.push_back(key);
  }
  where.fail(unknown_name_message("dtype", name, known));
}

std::string dtype_name(at::ScalarType dtype) {
  for (const auto& [name, known] : dtypes())
    if (known == dtype) return name;
  return c10::toString(dtype);
}

at::ScalarType accumulation_dtype(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16 ? at::kFloat : dtype;
}

at::Tensor valid_positions(const at::Tensor& lengths, std::int64_t length) {
  return at::arange(length, lengths.options()).unsqueeze(0) < lengths.unsqueeze(1);
}

void check_lengths(const std::optional<at::Tensor>& lengths, std::int64_t longest, const at::Tensor& like) {
  if (!lengths) return;
  if (lengths->scalar_type() != at::kLong || lengths->dim() != 1 || lengths->size(0) != like.size(0) ||
      lengths->device() != like.device()) {
    std::ostringstream got;
    got << lengths->sizes() << " of " << c10::toString(lengths->scalar_type()) << " on " << lengths->device();
    throw UsageError(fmt::format("lengths: {} is not allowed; allowed: int64 of shape ({},) on {}", got.str(), like.size(0),
                                 like.device().str()));
  }
  // On a device the values are not looked at: that would wait for everything queued before.
  if (!lengths->is_cpu() || lengths->numel() == 0) return;
  for (const auto value : {lengths->min().item<std::int64_t>(), lengths->max().item<std::int64_t>()})
    if (value < 0 || value > longest)
      throw UsageError(fmt::format("lengths: {} is out of range; allowed: 0 to {}", value, longest));
}

}  // namespace transpool
