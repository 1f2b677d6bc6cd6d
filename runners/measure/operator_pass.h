#pragma once

#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"

namespace transpool {

/// Inputs of a pooling operator, and passes over them.
struct PoolingPass {
  std::shared_ptr<const PoolingOperator> op;
  PoolingShape shape;
  std::string scores_kind = "uniform";  ///< see draw_scores
  std::string lengths_kind = "full";    ///< see draw_lengths
  at::Device device = at::kCPU;
  bool backward = true;
  at::Tensor x = {}, scores = {}, cotangent = {};
  std::optional<at::Tensor> lengths = {};

  void draw();

  /// One pass as it is timed.
  void run() const;

  /// The same, with all that it gives: values, scores, positions, and the gradients that were reached.
  std::vector<at::Tensor> outputs() const;

  /// Bytes that a pass of this declared cost must move: what the forward pass reads and writes; with `backward` also the
  /// cotangent, the gradients, and once more what was read, where the scores' gradient is made of it. `rows_read` is the
  /// share of x that a variant read which skips rows.
  double least_bytes(Cost cost, double rows_read = 1) const;

  /// Values, and with `backward` the gradients of x and of the scores (zeros where one is not reached), of any operator on
  /// these inputs in `dtype`. Random numbers are drawn from `noise_seed`.
  std::vector<at::Tensor> results(const PoolingOperator& which, at::ScalarType dtype, std::uint64_t noise_seed) const;

  static const std::vector<std::string>& result_names();
};

/// Inputs of an attention operator, and passes over them.
struct AttentionPass {
  std::shared_ptr<const AttentionOperator> op;
  AttentionShape shape;
  std::string lengths_kind = "full";
  at::Device device = at::kCPU;
  bool backward = true;
  at::Tensor q = {}, k = {}, v = {};
  at::Tensor cotangent = {};  ///< zero in rows past the length, which are nobody's
  at::Tensor valid = {};      ///< (B, 1, n, 1): rows before the length; undefined where there are no lengths
  AttentionMask mask = {};

  void draw();

  /// The same with these lengths of the keys, and of the queries where there are as many.
  void draw(const std::optional<at::Tensor>& lengths);

  void run() const;

  /// The output, and the gradients of q, k and v.
  std::vector<at::Tensor> outputs() const;

  /// Bytes that a pass of this declared cost must move: q, k and v read and the output written; with `backward` q, k, v
  /// and the cotangent read and three gradients written.
  double least_bytes(const Cost& cost) const;

  /// Output (zero in rows past the length), and with `backward` the gradients of q, k and v.
  std::vector<at::Tensor> results(const AttentionOperator& which, at::ScalarType dtype, std::uint64_t noise_seed) const;

  static const std::vector<std::string>& result_names();
};

/// ||a - b|| / ||b|| in float64; infinite where either is not finite or the shapes differ. `floor` is the least root mean
/// square that b counts with, for results that may be zero but for rounding.
double relative_error(const at::Tensor& a, const at::Tensor& b, double floor = 0);

/// The relative error that results of a dtype may have against a float64 reference.
double allowed_error(at::ScalarType dtype);

/// "" where the pass agrees with the float64 reference on its current inputs, else what differs and by how much.
template <class Pass, class Reference>
std::string disagreement(const Pass& pass, const Reference& reference);

extern template std::string disagreement(const PoolingPass&, const PoolingOperator&);
extern template std::string disagreement(const AttentionPass&, const AttentionOperator&);

}  // namespace transpool
