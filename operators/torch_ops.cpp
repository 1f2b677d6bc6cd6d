#include "operators/torch_ops.h"

#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"

#include <ATen/Functions.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <fmt/format.h>
#include <torch/library.h>

#include <algorithm>

namespace transpool {
namespace {

c10::impl::LocalDispatchKeySet with_autograd_keys() {
  auto keys = c10::impl::tls_local_dispatch_key_set();
  keys.excluded_ = keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  return keys;
}

/// The registry of a kind as JSON text: a list of variants with their options and capabilities.
std::string variants(std::string_view kind) {
  return translated(true, [&] {
    std::vector<std::string> kinds;
    for (const auto& [name, registry] : catalogue()) kinds.push_back(name);
    const auto found = catalogue().find(std::string(kind));
    if (found == catalogue().end()) throw UsageError(unknown_name_message("kind", kind, kinds));
    Json all = Json::array();
    for (const auto& name : found->second->names()) all.push_back(found->second->describe(name));
    return all.dump();
  });
}

template <class Variant>
std::string backend_of(const Registry<Variant>& registry, const Json& value, const at::Device& device) {
  const auto selection = registry.select(value, Where("options"));
  return selection.variant->make(selection.options)->backend(device);
}

/// What runs a variant on that device: "cuda", "aten", "cpu", as records name it.
std::string backend(std::string_view kind, std::string_view name, std::string_view options, at::Device device) {
  return translated(true, [&] {
    Json value = options_from_text(options);
    value["name"] = std::string(name);
    if (kind == pooling_registry().kind()) return backend_of(pooling_registry(), value, device);
    if (kind == attention_registry().kind()) return backend_of(attention_registry(), value, device);
    throw UsageError(unknown_name_message("kind", kind, {pooling_registry().kind(), attention_registry().kind()}));
  });
}

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def("variants(str kind) -> str", variants);
  library.def("backend(str kind, str name, str options, Device device) -> str", backend);
}

}  // namespace

Json options_from_text(std::string_view text) {
  if (text.empty()) return Json::object();
  auto parsed = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object())
    throw UsageError(fmt::format("options: {} is not allowed; allowed: JSON text of an object, or \"\"", text));
  return parsed;
}

bool is_traced(at::ArrayRef<at::Tensor> tensors) {
  constexpr c10::DispatchKeySet watching({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  return c10::impl::dispatch_mode_enabled() ||
         std::any_of(tensors.begin(), tensors.end(), [&](const auto& t) { return t.key_set().has_any(watching); });
}

at::Tensor fresh(const at::Tensor& result, at::ArrayRef<at::Tensor> inputs) {
  const bool shared = std::any_of(inputs.begin(), inputs.end(), [&](const auto& t) { return result.is_alias_of(t); });
  return shared ? result.clone(at::MemoryFormat::Contiguous) : result.contiguous();
}

at::Tensor draw_seed() { return at::randint(std::int64_t{1} << 31, {}, at::TensorOptions().dtype(at::kLong)); }

void check_lengths_in_range(const std::optional<at::Tensor>& lengths, std::int64_t n) {
  if (!lengths || !lengths->is_cpu()) return;
  const auto wrong = lengths->masked_select((*lengths < 0).logical_or(*lengths > n));
  if (wrong.numel() > 0)
    throw UsageError(
        fmt::format("lengths: {} is out of range; allowed: 0 to n = {}", wrong.select(0, 0).item<std::int64_t>(), n));
}

RecordingGradients::RecordingGradients() : keys_(with_autograd_keys()), mode_(true) {}

}  // namespace transpool
