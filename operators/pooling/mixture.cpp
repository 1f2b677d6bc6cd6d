#include "operators/pooling/mixture.h"

#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

namespace transpool {

namespace {

at::Tensor padded_positions(const at::Tensor& lengths, std::int64_t n) { return valid_positions(lengths, n).logical_not_(); }

/// Far under every logit, yet finite: a softmax over padded columns alone is no NaN.
constexpr double masked_logit = -1e37;

/// weights (B, k, n) times x (B, n, d), whose padded rows count as 0 whatever they hold. Plain autograd would keep a copy
/// of x without them; this masks x again in the backward pass.
class MaskedProduct : public torch::autograd::Function<MaskedProduct> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& weights, const at::Tensor& x,
                            const at::Tensor& lengths) {
    context->save_for_backward({weights, x, lengths});
    return at::bmm(weights, without_padding(x, lengths));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto& weights = saved[0];
    const auto& x = saved[1];
    const auto& lengths = saved[2];
    at::Tensor weight_gradient, x_gradient;
    if (context->needs_input_grad(0)) weight_gradient = at::bmm(gradients[0], without_padding(x, lengths).transpose(1, 2));
    if (context->needs_input_grad(1))
      x_gradient =
          at::bmm(weights.transpose(1, 2), gradients[0]).masked_fill_(padded_positions(lengths, x.size(1)).unsqueeze(2), 0);
    return {weight_gradient, x_gradient, at::Tensor()};
  }
};

}  // namespace

at::Tensor leading_rows(const at::Tensor& weights) {
  const auto given = weights.detach();
  const double rounding = weights.scalar_type() == at::kDouble ? 1e-12 : 1e-6;
  return (given >= given.amax(-1, /*keepdim=*/true) * (1 - rounding)).to(at::kByte).argmax(-1);
}

at::Tensor clean_scores(const at::Tensor& scores, const std::optional<at::Tensor>& lengths) {
  const auto bounded = bounded_scores(scores);
  return lengths ? bounded.masked_fill(padded_positions(*lengths, scores.size(1)), 0) : bounded;
}

at::Tensor mixture_softmax(const at::Tensor& logits, const std::optional<at::Tensor>& lengths,
                           const std::optional<at::Tensor>& excluded) {
  // Masks are added, since masked_fill would keep them for a backward pass that has nothing to do there.
  auto masked = logits;
  if (excluded) masked = masked + excluded->to(logits.scalar_type()).mul_(masked_logit);
  if (lengths) {
    const auto padded = padded_positions(*lengths, logits.size(2)).unsqueeze(1);
    masked = masked + padded.to(logits.scalar_type()).mul_(masked_logit);
  }
  return masked.softmax(2);
}

Pooled mix_rows(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& weights,
                const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& leaders) {
  const auto rounded = weights.to(x.scalar_type());
  Pooled pooled;
  pooled.values = lengths ? MaskedProduct::apply(rounded, x, *lengths) : at::bmm(rounded, x);
  pooled.scores = at::bmm(weights, clean_scores(scores, lengths).unsqueeze(2)).squeeze(2);
  pooled.positions = leaders ? *leaders : leading_rows(weights);
  return without_absent_outputs(pooled, lengths);
}

at::Tensor without_padding(const at::Tensor& x, const std::optional<at::Tensor>& lengths) {
  return lengths ? x.masked_fill(padded_positions(*lengths, x.size(1)).unsqueeze(2), 0) : x;
}

Pooled without_absent_outputs(Pooled pooled, const std::optional<at::Tensor>& lengths) {
  if (!lengths) return pooled;
  const auto absent = padded_positions(*lengths, pooled.values.size(1));
  pooled.values = pooled.values.masked_fill(absent.unsqueeze(2), 0);
  pooled.scores = pooled.scores.masked_fill(absent, 0);
  pooled.positions = pooled.positions.masked_fill(absent, -1);
  return pooled;
}

Pooled mix_one_row_plainly(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& weights, std::int64_t k) {
  const auto wide = weights.to(at::kDouble);
  const auto missing = k - weights.size(0);
  // A product of float64 matrices: the terms of plain sums would be (m, L, d) numbers.
  const auto values = wide.mm(x.to(at::kDouble)).to(x.scalar_type());
  const auto kept = (wide * bounded_scores(scores.to(at::kDouble)).unsqueeze(0)).sum(1).to(scores.scalar_type());
  // The first of the largest up to rounding.
  const auto largest = wide.detach() >= (1 - 1e-12) * wide.detach().amax(1, /*keepdim=*/true);
  const auto index = at::arange(weights.size(1), largest.options().dtype(at::kLong)).expand_as(largest);
  const auto positions = index.masked_fill(largest.logical_not(), weights.size(1)).amin(1);
  return {at::constant_pad_nd(values, {0, 0, 0, missing}), at::constant_pad_nd(kept, {0, missing}),
          at::constant_pad_nd(positions, {0, missing}, -1)};
}

Pooled mix_by_rows(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                   const RowWeights& weights_of) {
  std::vector<at::Tensor> values, kept, positions;
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    const auto valid = lengths ? (*lengths)[b].item<std::int64_t>() : x.size(1);
    Pooled row{at::zeros({k, x.size(2)}, x.options()), at::zeros({k}, scores.options()),
               at::full({k}, -1, scores.options().dtype(at::kLong))};
    if (valid > 0) {
      const auto valid_scores = scores[b].narrow(0, 0, valid);
      const auto weights = weights_of(bounded_scores(valid_scores.to(at::kDouble)), std::min(k, valid), b);
      row = mix_one_row_plainly(x[b].narrow(0, 0, valid), valid_scores, weights, k);
    }
    values.push_back(row.values);
    kept.push_back(row.scores);
    positions.push_back(row.positions);
  }
  return {at::stack(values), at::stack(kept), at::stack(positions)};
}

std::int64_t score_bytes(at::ScalarType x_dtype) { return x_dtype == at::kDouble ? sizeof(double) : sizeof(float); }

Cost mixture_cost(const PoolingShape& shape, double kept_weights) {
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto score = static_cast<double>(score_bytes(shape.dtype));
  const auto width = static_cast<double>(shape.width);
  const auto rows = static_cast<double>(shape.batch * shape.length);
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  const double weights = outputs * static_cast<double>(shape.length);
  const bool rounded = shape.dtype != at::kFloat && shape.dtype != at::kDouble;
  Cost cost;
  cost.flops = 2 * weights * (width + 1);
  cost.backward_flops = 4 * weights * width;
  cost.bytes_read = rows * (width * element + score);
  cost.bytes_written = outputs * (width * element + score + sizeof(std::int64_t));
  // Cleaned twice, by the operator and for the scores of the outputs: the scores before they are clamped, which of them are
  // NaN, and which are padding. The outputs take the clean ones as a factor.
  const double per_score = 2 * (score + 2) + score;
  cost.activation_bytes =
      kept_weights * weights * score + (rounded ? weights * element : 0) + rows * per_score + cost.bytes_written + outputs;
  return cost;
}

}  // namespace transpool
