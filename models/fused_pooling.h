#pragma once

#include "models/scorers/scorer.h"
#include "operators/pooling/pooling.h"

namespace transpool {

/// What a pooling layer gives: pooled rows, and the scores (B, n) that they were pooled by.
struct ScoredPooled {
  Pooled pooled;
  torch::Tensor scores;
};

/// A scorer and a pooling operator as one, where a kernel takes both: the function of the two in turn, but for rounding.
/// Throws Unsupported where `FusedPoolingVariant::backend` names none.
using FusedPooling = std::function<ScoredPooled(const ScorerInput& in, std::int64_t k)>;

/// Such a form of one scorer and one pooling operator. One lives in one file under fused/ and registers itself.
struct FusedPoolingVariant {
  std::string scorer;  ///< names in their registries
  std::string pooling;
  /// Shares the scorer's parameters.
  std::function<FusedPooling(const Scorer& scorer, const Options& pooling)> make = {};
  /// What runs it on that device: "cuda"; "" where it does not take such rows there, or not what `precision` (the dtype that
  /// autocast would give the scorer, else that of the rows) makes of them.
  std::function<std::string(const at::Device& device, const PoolingShape& shape, at::ScalarType precision)> backend = {};
};

struct RegisterFusedPooling {
  /// Throws std::logic_error where the two have a fused form already.
  explicit RegisterFusedPooling(FusedPoolingVariant variant);
};

/// The fused form of a scorer and a pooling operator by their names, or nullptr.
const FusedPoolingVariant* find_fused_pooling(const std::string& scorer, const std::string& pooling);

}  // namespace transpool
