#pragma once

#include "operators/layout.h"
#include "operators/registry.h"
#include "operators/tensor.h"

namespace transpool {

struct AttentionShape {
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::int64_t queries = 1;
  std::int64_t keys = 1;
  std::int64_t head_width = 1;
  bool causal = false;
  bool masked = false;  ///< lengths are given
  at::ScalarType dtype = at::kFloat;
  at::DeviceType device = at::kCPU;  ///< what is executed there may differ; what is declared does not
};

struct AttentionMask {
  /// int64 (B,): keys from there on are not attended to; all keys are valid where absent. Padded rows must be finite.
  std::optional<at::Tensor> key_lengths = {};
  bool causal = false;
};

/// Maps q (B, h, n, e), k and v (B, h, m, e) to (B, h, n, e): softmax(q k^T / sqrt(e)) v over the keys that the variant and
/// the mask allow. Rows with no key allowed are zero.
class AttentionOperator {
 public:
  virtual ~AttentionOperator() = default;
  virtual at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const AttentionMask& mask) const = 0;
  virtual std::string backend(const at::Device&) const { return "aten"; }
};

using AttentionFactory = std::function<std::shared_ptr<const AttentionOperator>(const Options&)>;

struct AttentionVariant : VariantInfo {
  AttentionFactory make = {};
  /// The same function written independently, for checks.
  AttentionFactory reference = {};
  std::function<Cost(const AttentionShape&, const Options&)> cost = {};
};

Registry<AttentionVariant>& attention_registry();

constexpr std::uint64_t attention_layout =
    layout_tag<AttentionVariant, OptionSpec, Capabilities, Options, AttentionShape, Cost, AttentionMask>();

struct RegisterAttention {
  /// As for pooling: `layout` is the registering file's own. Throws std::logic_error where it is not the program's.
  explicit RegisterAttention(AttentionVariant variant, std::uint64_t layout = attention_layout);
};

/// Throws UsageError naming the argument, its shape and what is allowed.
void check_attention_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask);

/// For operators on one sequence alone: throws Unsupported naming the operator where k has another length than q.
void refuse_other_length(const std::string& name, const at::Tensor& q, const at::Tensor& k);

/// For operators that cannot mask the future: throws Unsupported naming the operator.
void refuse_causal(const std::string& name, const AttentionMask& mask);

/// Throws Unsupported where the variant's capabilities leave this shape, device or dtype out.
void check_attention_support(const AttentionVariant& variant, const AttentionShape& shape, const std::string& device);

/// Cost of attention over `pairs` query-key pairs (batch and heads included); bytes and activations from the shape.
Cost attention_cost(const AttentionShape& shape, double pairs);

}  // namespace transpool
