#pragma once

#include "operators/layout.h"
#include "operators/registry.h"
#include "operators/tensor.h"

namespace transpool {

struct PoolingShape {
  std::int64_t batch = 1;
  std::int64_t length = 1;
  std::int64_t width = 1;
  std::int64_t pooled_length = 1;
  at::ScalarType dtype = at::kFloat;
};

/// What a pooling operator gives. Rows past min(k, length of the batch row) are zero, with score 0 and position -1;
/// all real rows come before them.
struct Pooled {
  at::Tensor values;     ///< (B, k, d), dtype of x
  at::Tensor scores;     ///< (B, k), dtype of the scores
  at::Tensor positions;  ///< (B, k) int64: the source row that weighs most in each output row
};

/// Maps n scored rows to k. NaN scores rank as -inf; ties go to the lower position.
class PoolingOperator {
 public:
  virtual ~PoolingOperator() = default;

  /// x (B, n, d) in any floating dtype; scores (B, n) in float32 (float64 for checks); 1 <= k <= n; lengths int64 (B,):
  /// the valid rows of each batch row, all n where absent. Padded rows never reach the output, whatever they hold.
  virtual Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                         const std::optional<at::Tensor>& lengths) const = 0;

  /// Which part of the valid rows of x a call reads, where that depends on the scores; nothing where it does not.
  virtual std::optional<double> rows_read(const at::Tensor&, const at::Tensor&, std::int64_t,
                                          const std::optional<at::Tensor>&) const {
    return std::nullopt;
  }

  /// Whether the loss reaches the scores through this operator.
  virtual bool passes_score_gradient() const { return true; }

  /// What runs on that device: "aten", "cpu", "cuda". Recorded with every measurement.
  virtual std::string backend(const at::Device&) const { return "aten"; }
};

using PoolingFactory = std::function<std::shared_ptr<const PoolingOperator>(const Options&)>;

struct PoolingVariant : VariantInfo {
  PoolingFactory make = {};
  /// The same function written independently, for checks.
  PoolingFactory reference = {};
  std::function<Cost(const PoolingShape&, const Options&)> cost = {};
  /// Whether every output is led by a source row of its own, so that k = n gives all rows back. A free mixture may weigh
  /// the same row most in two outputs.
  bool distinct_rows = true;
  /// Options that bring a relaxation next to hard top-k, {"temperature": 1e-4}; null where it is none.
  Json sharp = nullptr;
};

Registry<PoolingVariant>& pooling_registry();

constexpr std::uint64_t pooling_layout =
    layout_tag<PoolingVariant, OptionSpec, Capabilities, Options, PoolingShape, Cost, Pooled>();

struct RegisterPooling {
  /// `layout` is the registering file's own, since default arguments belong to the caller. Throws std::logic_error where it
  /// is not the program's, before `variant` is touched.
  explicit RegisterPooling(PoolingVariant variant, std::uint64_t layout = pooling_layout);
};

/// Throws UsageError naming the argument, its value and what is allowed; called by every operator first.
void check_pooling_arguments(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths);

/// Throws Unsupported where the variant's capabilities leave this shape, device or dtype out.
void check_pooling_support(const PoolingVariant& variant, const PoolingShape& shape, const std::string& device);

/// The rows that are left of each batch row: min(k, length). Nothing where there are no lengths.
std::optional<at::Tensor> pooled_lengths(const std::optional<at::Tensor>& lengths, std::int64_t k);

}  // namespace transpool
