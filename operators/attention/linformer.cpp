#include "operators/attention/attention.h"
#include "operators/noise.h"

#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// Keys and values projected along the length to p rows: softmax(Q (E K)^T / sqrt(e)) E V with one fixed E for both.
/// `mean`: row s of E averages the keys j with floor(j c / L) = s, c = min(p, L), L the valid length; rows from c on are not
/// there. `random`: E is Gaussian of variance 1/p, its columns past L are zero.
class LinformerAttention : public AttentionOperator {
 public:
  explicit LinformerAttention(const Options& options)
      : rows_(options.integer("projected_length")), mean_(options.text("projection") == "mean"), seed_(seed_of(options)) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    refuse_causal("linformer", mask);
    const auto m = k.size(2);
    const auto lengths = mask.key_lengths ? *mask.key_lengths : at::full({1}, m, k.options().dtype(at::kLong));
    const auto count = lengths.clamp(1, rows_);  // of a batch row without any key one stays, and its output is zeroed
    const auto projection = (mean_ ? segment_means(lengths, count, m) : gaussian(lengths, k)).to(k.scalar_type());
    const auto keys = project(projection, k);
    const auto values = project(projection, v);
    auto logits = at::matmul(q, keys.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
    if (mean_) {
      const auto absent = valid_positions(count, rows_).logical_not().view({-1, 1, 1, rows_});
      logits = logits.masked_fill(absent, -std::numeric_limits<double>::infinity());
    }
    const auto out = at::matmul(logits.softmax(3).to(values.scalar_type()), values);
    return mask.key_lengths ? out.masked_fill((lengths == 0).view({-1, 1, 1, 1}), 0) : out;
  }

 private:
  /// (B or 1, p, m) times (B, h, m, e), all heads in one product.
  static at::Tensor project(const at::Tensor& projection, const at::Tensor& rows) {
    const auto heads = rows.size(1);
    return at::matmul(projection, rows.transpose(1, 2).flatten(2)).unflatten(2, {heads, rows.size(3)}).transpose(1, 2);
  }

  /// (B or 1, p, m).
  at::Tensor segment_means(const at::Tensor& lengths, const at::Tensor& count, std::int64_t m) const {
    const auto place = at::arange(m, lengths.options());
    const auto segment = at::floor_divide(place * count.view({-1, 1}), lengths.clamp_min(1).view({-1, 1}));
    auto member = at::arange(rows_, lengths.options()).view({1, rows_, 1}) == segment.unsqueeze(1);
    member = member.logical_and(valid_positions(lengths, m).unsqueeze(1));
    return member / member.sum(2, true).clamp_min(1).to(at::kDouble);
  }

  at::Tensor gaussian(const at::Tensor& lengths, const at::Tensor& k) const {
    const auto drawn = seeded_normal({rows_, k.size(2)}, k, seed_).to(accumulation_dtype(k.scalar_type())) /
                       std::sqrt(static_cast<double>(rows_));
    return drawn * valid_positions(lengths, k.size(2)).unsqueeze(1);
  }

  std::int64_t rows_;
  bool mean_;
  std::optional<std::int64_t> seed_;
};

/// The same by slices of one batch row after the other; weights by log-sum-exp.
class LinformerBySlices : public AttentionOperator {
 public:
  explicit LinformerBySlices(const Options& options)
      : rows_(options.integer("projected_length")), mean_(options.text("projection") == "mean"), seed_(seed_of(options)) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    const auto drawn = mean_ ? at::Tensor() : seeded_normal({rows_, k.size(2)}, k, seed_);
    std::vector<at::Tensor> batch;
    for (std::int64_t b = 0; b < q.size(0); ++b) {
      const auto valid = mask.key_lengths ? (*mask.key_lengths)[b].item<std::int64_t>() : k.size(2);
      if (valid == 0) {
        batch.push_back(q[b] * 0);
        continue;
      }
      const auto keys = project(k[b].narrow(1, 0, valid).to(at::kDouble), drawn);
      const auto values = project(v[b].narrow(1, 0, valid).to(at::kDouble), drawn);
      const auto logits = at::einsum("hie,hse->his", {q[b].to(at::kDouble), keys}) * std::pow(q.size(3), -0.5);
      batch.push_back(at::einsum("his,hse->hie", {(logits - logits.logsumexp(2, true)).exp(), values}));
    }
    return at::stack(batch).to(q.scalar_type());
  }

 private:
  /// (h, L, e) -> (h, p or L, e).
  at::Tensor project(const at::Tensor& rows, const at::Tensor& drawn) const {
    const auto valid = rows.size(1);
    std::vector<at::Tensor> projected;
    for (std::int64_t s = 0; s < (mean_ ? std::min(rows_, valid) : rows_); ++s) {
      if (mean_) {
        const auto count = std::min(rows_, valid);
        const auto begin = (s * valid + count - 1) / count;
        const auto end = ((s + 1) * valid + count - 1) / count;
        projected.push_back(rows.narrow(1, begin, end - begin).mean(1));
      } else {
        const auto row = drawn[s].narrow(0, 0, valid).to(at::kDouble) * std::pow(rows_, -0.5);
        projected.push_back((row.view({1, valid, 1}) * rows).sum(1));
      }
    }
    return at::stack(projected, 1);
  }

  std::int64_t rows_;
  bool mean_;
  std::optional<std::int64_t> seed_;
};

Cost linformer_cost(const AttentionShape& shape, const Options& options) {
  const auto p = static_cast<double>(options.integer("projected_length"));
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto queries = static_cast<double>(shape.queries);
  const auto keys = static_cast<double>(shape.keys);
  const auto e = static_cast<double>(shape.head_width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  auto cost = attention_cost(shape, heads * p * (queries + keys));
  // E takes no gradient: its two products go back through one factor only.
  cost.backward_flops -= 4 * heads * p * keys * e;
  const auto projections = shape.masked ? static_cast<double>(shape.batch) : 1.0;
  // The output and, as a product over contiguous heads, q; projected keys and values; the weights; the projection.
  cost.activation_bytes =
      (2 * heads * queries * e + 2 * heads * p * e + heads * queries * p + projections * p * keys) * element;
  if (shape.masked) cost.activation_bytes += projections;
  if (options.text("projection") == "mean") cost.activation_bytes += projections * p;
  return cost;
}

const RegisterAttention registration({
    {.name = "linformer",
     .description = "keys and values projected along the length to a fixed number of rows by a fixed projection",
     .source = "arXiv 2006.04768, equation 7 with E = F; `random` as in the proof of Theorem 2",
     .options = {{.name = "projected_length",
                  .type = OptionType::integer,
                  .fallback = 256,
                  .meaning = "rows that keys and values are projected to, p",
                  .minimum = 1},
                 {.name = "projection",
                  .type = OptionType::choice,
                  .fallback = "mean",
                  .meaning = "mean of equal segments of the valid length, or Gaussian (the paper's is learned)",
                  .choices = {"mean", "random"}},
                 seed_option("random projections", 0)},
     .capabilities = {.stochastic = true, .cross = true}},
    [](const Options& options) { return std::make_shared<LinformerAttention>(options); },
    [](const Options& options) { return std::make_shared<LinformerBySlices>(options); },
    linformer_cost,
});

}  // namespace
}  // namespace transpool
