#pragma once

#include "operators/options.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace transpool {

/// What a variant can run on. Everything else refuses it with `unsupported` before anything is built.
struct Capabilities {
  std::vector<std::string> devices = {"cpu", "cuda"};
  std::vector<std::string> dtypes = {"float64", "float32", "bfloat16", "float16"};
  bool differentiable = true;
  bool stochastic = false;                    ///< draws random numbers; repeatable with its option `seed`
  bool pooled_length_divides_length = false;  ///< needs k | n
  bool causal = false;                        ///< attention only: can mask the future
  bool cross = false;                         ///< attention only: takes keys of another length than the queries
  bool estimated_gradient = false;            ///< estimates an expectation's gradient: no derivative of the call's own value
  std::int64_t max_length = 0;                ///< 0: no limit
};

Json to_json(const Capabilities& capabilities);

/// What one call costs. FLOPs count multiply-accumulates of contractions as 2; softmax, sorting, masks and other
/// elementwise work are not FLOPs. Padding is counted, causal attention at its half.
struct Cost {
  double flops = 0;             ///< forward
  double backward_flops = 0;    ///< of the pass that follows; 2x forward where both factors take a gradient
  double bytes_read = 0;        ///< forward, each input once
  double bytes_written = 0;     ///< forward
  double activation_bytes = 0;  ///< kept for the backward pass beyond the inputs
  /// FLOPs that the dispatched calls show beyond (or, negative, short of) the declared ones, by the name of the cause:
  /// forward and backward. Only causes that the observed calls cannot tell themselves belong here.
  std::map<std::string, double> forward_differences = {};
  std::map<std::string, double> backward_differences = {};

  Cost& operator+=(const Cost& other);
  Cost scaled(double factor) const;
};

/// A kind of exchangeable part: pooling, attention, scorer, encoder ... Lists its variants to whoever asks by kind.
class RegistryBase {
 public:
  RegistryBase(std::string kind, std::string noun);
  RegistryBase(const RegistryBase&) = delete;
  RegistryBase& operator=(const RegistryBase&) = delete;
  virtual ~RegistryBase() = default;

  const std::string& kind() const { return kind_; }  ///< "pooling"
  const std::string& noun() const { return noun_; }  ///< "pooling operator", for messages
  virtual std::vector<std::string> names() const = 0;
  virtual Json describe(const std::string& name) const = 0;

  /// Checks a value of an experiment (a name, or an object with a name and options) and returns it in full:
  /// {"name": ..., every option with its value}. Throws UsageError at `where`.
  virtual Json resolve(const Json& value, const Where& where) const = 0;

 private:
  std::string kind_;
  std::string noun_;
};

/// Every registry of the program, in the order of their kinds' names.
const std::map<std::string, RegistryBase*>& catalogue();

/// Splits a variant value into its name and its options object. Throws UsageError unless it is one or the other.
std::pair<std::string, Json> split_variant(const Json& value, const std::string& noun, const Where& where);

/// The parts that every variant has, whatever its kind.
struct VariantInfo {
  std::string name;
  std::string description;  ///< one line
  std::string source;       ///< paper and equation it implements
  std::vector<OptionSpec> options = {};
  Capabilities capabilities = {};
};

Json to_json(const VariantInfo& info);

/// Whether the name alone is a full value: every option has a default. One that runs a file of the user's has none for it.
bool runs_by_name(const VariantInfo& info);

/// A variant together with checked options.
template <class Variant>
struct Selection {
  const Variant* variant = nullptr;
  Options options;
};

/// Variants of one kind by name. `Variant` derives from VariantInfo.
template <class Variant>
class Registry : public RegistryBase {
 public:
  using RegistryBase::RegistryBase;

  /// Throws std::logic_error where the name is taken: two files registered it.
  void add(Variant variant) {
    const std::string name = variant.name;
    if (!variants_.emplace(name, std::move(variant)).second)
      throw std::logic_error(noun() + " \"" + name + "\" is registered twice");
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& [name, variant] : variants_) all.push_back(name);
    return all;
  }

  const Variant& find(const std::string& name, const Where& where = {}) const {
    const auto found = variants_.find(name);
    if (found == variants_.end()) where.fail(unknown_name_message(noun(), name, names()));
    return found->second;
  }

  Selection<Variant> select(const Json& value, const Where& where = {}) const {
    const auto [name, options] = split_variant(value, noun(), where);
    const auto& variant = find(name, where);
    return {&variant, Options(variant.options, options, "option of " + noun() + " \"" + name + "\"", where)};
  }

  Json resolve(const Json& value, const Where& where) const override {
    const auto selection = select(value, where);
    Json full = {{"name", selection.variant->name}};
    full.update(selection.options.json());
    return full;
  }

  Json describe(const std::string& name) const override { return to_json(find(name)); }

  const std::map<std::string, Variant>& all() const { return variants_; }

 private:
  std::map<std::string, Variant> variants_;
};

}  // namespace transpool
