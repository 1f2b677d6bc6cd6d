#pragma once

#include "operators/registry.h"
#include "operators/tensor.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <mutex>
#include <string_view>
#include <utility>

namespace transpool {

/// The options of a call from outside: JSON text of an object, or "" for none. Throws UsageError.
Json options_from_text(std::string_view text);

/// Whether single calls on these tensors are watched (tracing, dispatch modes, functionalisation), so that an operator has
/// to show itself as one opaque call with a backward call of its own.
bool is_traced(at::ArrayRef<at::Tensor> tensors);

/// The result as an operator without aliases promises it: contiguous, in memory that none of the inputs has.
at::Tensor fresh(const at::Tensor& result, at::ArrayRef<at::Tensor> inputs);

/// A number for the option `seed`: int64 scalar on the CPU, from torch's global generator.
at::Tensor draw_seed();

/// Throws UsageError where a length on the CPU is not from 0 to n. Lengths on a device are not read: that would wait for it.
void check_lengths_in_range(const std::optional<at::Tensor>& lengths, std::int64_t n);

/// Inside, autograd records as it does outside of the dispatcher's kernels.
class RecordingGradients {
 public:
  RecordingGradients();

 private:
  c10::impl::ForceDispatchKeyGuard keys_;
  at::AutoGradMode mode_;
};

/// Calls, and gives an error of ours to Python as ValueError; as TypeError where `dtypes_fit` is false.
template <class Call>
auto translated(bool dtypes_fit, const Call& call) {
  try {
    return call();
  } catch (const UsageError& error) {
    TORCH_CHECK_TYPE(dtypes_fit, error.what());
    TORCH_CHECK_VALUE(false, error.what());
  } catch (const Unsupported& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

/// Calls, and puts the operator's name in front of an error in its arguments: `owner` is 'pooling operator "hard_topk"'.
template <class Call>
auto naming(const std::string& owner, const Call& call) {
  try {
    return call();
  } catch (const UsageError& error) {
    throw UsageError(owner + ": " + error.what());
  }
}

/// The dispatcher's handle of "transpool::NAME" with the signature of its kernel.
template <class Kernel>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

/// An operator made of a variant and its options.
template <class Variant>
struct Instance {
  const Variant* variant = nullptr;
  Options options;
  Options call;  ///< options of the call, not of the variant
  typename decltype(Variant::make)::result_type op;

  /// Whether two calls with the same input differ.
  bool draws() const { return variant->capabilities.stochastic && !options.has("seed"); }
};

/// Operators by name and options text, made once: a Python loop calls with the same text each step.
template <class Variant>
class Instances {
 public:
  /// `call_specs`: keys of the options text that belong to the call instead of the variant.
  explicit Instances(const Registry<Variant>& registry, std::vector<OptionSpec> call_specs = {})
      : registry_(registry), call_specs_(std::move(call_specs)) {}

  /// Throws UsageError for an unknown name, an option that is not allowed, text that is no JSON object.
  std::shared_ptr<const Instance<Variant>> get(std::string_view name, std::string_view text,
                                               const std::optional<at::Tensor>& seed = {}) {
    if (seed) return make(name, text, seed->template item<std::int64_t>());
    const std::scoped_lock lock(mutex_);
    auto& known = known_[{std::string(name), std::string(text)}];
    if (!known) {
      auto made = make(name, text, nullptr);
      if (known_.size() > limit) known_.clear();
      return known_[{std::string(name), std::string(text)}] = std::move(made);
    }
    return known;
  }

 private:
  /// A caller who writes a new seed into the text each step would else fill the memory.
  static constexpr std::size_t limit = 256;

  std::shared_ptr<const Instance<Variant>> make(std::string_view name, std::string_view text, const Json& seed) const {
    Json given = options_from_text(text);
    Json call = Json::object();
    for (const auto& spec : call_specs_) {
      if (!given.contains(spec.name)) continue;
      call[spec.name] = given[spec.name];
      given.erase(spec.name);
    }
    if (given.contains("name")) throw UsageError("options: \"name\" is an argument of its own, no option");
    given["name"] = std::string(name);
    if (!seed.is_null()) given["seed"] = seed;
    const Where where("options");
    const auto selection = registry_.select(given, where);
    return std::make_shared<const Instance<Variant>>(
        Instance<Variant>{selection.variant, selection.options, Options(call_specs_, call, "option of the call", where),
                          selection.variant->make(selection.options)});
  }

  const Registry<Variant>& registry_;
  std::vector<OptionSpec> call_specs_;
  std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, std::shared_ptr<const Instance<Variant>>> known_;
};

}  // namespace transpool
