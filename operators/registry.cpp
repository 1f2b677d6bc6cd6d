#include "operators/registry.h"

#include <algorithm>

namespace transpool {
namespace {

std::map<std::string, RegistryBase*>& mutable_catalogue() {
  static std::map<std::string, RegistryBase*> registries;
  return registries;
}

}  // namespace

RegistryBase::RegistryBase(std::string kind, std::string noun) : kind_(std::move(kind)), noun_(std::move(noun)) {
  mutable_catalogue()[kind_] = this;
}

const std::map<std::string, RegistryBase*>& catalogue() { return mutable_catalogue(); }

Cost& Cost::operator+=(const Cost& other) {
  flops += other.flops;
  backward_flops += other.backward_flops;
  bytes_read += other.bytes_read;
  bytes_written += other.bytes_written;
  activation_bytes += other.activation_bytes;
  for (const auto& [name, value] : other.forward_differences) forward_differences[name] += value;
  for (const auto& [name, value] : other.backward_differences) backward_differences[name] += value;
  return *this;
}

Cost Cost::scaled(double factor) const {
  Cost result = *this;
  for (double* value :
       {&result.flops, &result.backward_flops, &result.bytes_read, &result.bytes_written, &result.activation_bytes})
    *value *= factor;
  for (auto& [name, value] : result.forward_differences) value *= factor;
  for (auto& [name, value] : result.backward_differences) value *= factor;
  return result;
}

Json to_json(const Capabilities& capabilities) {
  return Json{{"devices", capabilities.devices},
              {"dtypes", capabilities.dtypes},
              {"differentiable", capabilities.differentiable},
              {"stochastic", capabilities.stochastic},
              {"estimated_gradient", capabilities.estimated_gradient},
              {"pooled_length_divides_length", capabilities.pooled_length_divides_length},
              {"causal", capabilities.causal},
              {"cross", capabilities.cross},
              {"max_length", capabilities.max_length == 0 ? Json(nullptr) : Json(capabilities.max_length)}};
}

Json to_json(const VariantInfo& info) {
  Json options = Json::array();
  for (const auto& spec : info.options) options.push_back(to_json(spec));
  return Json{{"name", info.name},
              {"description", info.description},
              {"source", info.source},
              {"options", options},
              {"capabilities", to_json(info.capabilities)}};
}

bool runs_by_name(const VariantInfo& info) {
  return std::all_of(info.options.begin(), info.options.end(),
                     [](const OptionSpec& spec) { return spec.optional || !spec.fallback.is_null(); });
}

std::pair<std::string, Json> split_variant(const Json& value, const std::string& noun, const Where& where) {
  if (value.is_string()) return {value.get<std::string>(), Json::object()};
  if (!value.is_object() || !value.contains("name") || !value["name"].is_string())
    where.fail(value.dump() + " is not allowed; allowed: name of a " + noun +
               ", or an object with a \"name\" and its options");
  Json options = value;
  options.erase("name");
  return {value["name"].get<std::string>(), options};
}

}  // namespace transpool
