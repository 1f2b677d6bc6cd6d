#pragma once

#include "operators/pooling/pooling.h"
#include "tests/operators/gradcheck.h"
#include "tests/operators/variants.h"

namespace transpool {

inline Selection<PoolingVariant> selected(const Json& value) { return pooling_registry().select(value); }

inline std::shared_ptr<const PoolingOperator> pooling(const Json& value, bool reference = false) {
  const auto selection = selected(value);
  return reference ? selection.variant->reference(selection.options) : selection.variant->make(selection.options);
}

inline at::Tensor lengths_of(const std::vector<std::int64_t>& lengths) { return at::tensor(lengths, at::kLong); }

/// (1, n) float64.
inline at::Tensor row_of(const std::vector<double>& values) { return at::tensor(values, at::kDouble).unsqueeze(0); }

/// (rows, scores) -> (values, scores of the outputs).
inline Differentiable pooled_by(std::shared_ptr<const PoolingOperator> op, std::int64_t k,
                                const std::optional<at::Tensor>& lengths = std::nullopt) {
  return [=](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    const auto pooled = op->forward(in[0], in[1], k, lengths);
    return {pooled.values, pooled.scores};
  };
}

/// (rows, scores) -> (values).
inline Differentiable values_by(std::shared_ptr<const PoolingOperator> op, std::int64_t k,
                                const std::optional<at::Tensor>& lengths = std::nullopt) {
  return [=](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    return {op->forward(in[0], in[1], k, lengths).values};
  };
}

/// The weights (B, k, n) that the operator mixes rows by: what it makes of the unit vectors.
inline at::Tensor weights_of(const PoolingOperator& op, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths = std::nullopt) {
  const auto n = scores.size(1);
  return op.forward(at::eye(n, scores.options()).expand({scores.size(0), n, n}), scores, k, lengths).values;
}

}  // namespace transpool
