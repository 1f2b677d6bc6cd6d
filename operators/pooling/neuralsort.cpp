#include "operators/pooling/mixture.h"
#include "operators/pooling/ranking.h"

namespace transpool {
namespace {

/// How far the logits (n + 1 - 2i) s - A 1 of output i fall under their largest, that of the i-th highest row, for each
/// rank: (B, k, n), >= 0, from scores by rank (B, n). Between ranks l and l + 1 the logits change by |2 (l - i) + 1| times
/// the step from score to score, and away from rank i always downward: prefix sums of non-negative terms, which lose no
/// digits, where n s and A 1 would cancel. Neither A nor n is needed any more.
at::Tensor falls_by_rank(const at::Tensor& sorted, std::int64_t k) {
  const auto n = sorted.size(1);
  const auto m = std::min(k, n - 1);
  const auto steps = sorted.narrow(1, 0, n - 1) - sorted.narrow(1, 1, n - 1);
  const auto place = at::arange(n, sorted.options());
  const auto slopes = (2 * (place.narrow(0, 0, n - 1).unsqueeze(0) - place.narrow(0, 0, k).unsqueeze(1)) + 1).abs();
  const auto falls = steps.unsqueeze(1) * slopes;
  const auto below = falls.triu(0).cumsum(2);
  const auto above = falls.narrow(2, 0, m).tril(-1).flip(2).cumsum(2).flip(2);
  return at::constant_pad_nd(below, {1, 0}) + at::constant_pad_nd(above, {0, n - m});
}

class NeuralSort : public PoolingOperator {
 public:
  explicit NeuralSort(const Options& options) : temperature_(options.real("temperature")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto ranking = rank_scores(clean_scores(scores, lengths), lengths);
    const auto falls = falls_by_rank(ranking.scores, k) * (-1 / temperature_);
    const auto logits = falls.gather(2, ranking.ranks.unsqueeze(1).expand(falls.sizes()));
    return mix_rows(x, scores, mixture_softmax(logits, lengths), lengths, ranking.leaders.narrow(1, 0, k));
  }

 private:
  double temperature_;
};

/// Row by row from the pairs |s_j - s_l|, whose signs are those of the order. Pairs that stand on the same side of both rows
/// are taken together, so that large scores elsewhere cost no digits.
class NeuralSortReference : public PoolingOperator {
 public:
  explicit NeuralSortReference(const Options& options) : temperature_(options.real("temperature")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return mix_by_rows(x, scores, k, lengths, [this](const at::Tensor& s, std::int64_t outputs, std::int64_t) {
      const auto n = s.size(0);
      const auto order = order_by_counting(s);
      const auto rank = at::empty_like(order).scatter_(0, order, at::arange(n, order.options()));
      const auto sign = at::where(rank.unsqueeze(1) < rank.unsqueeze(0), 1.0, -1.0).to(at::kDouble);
      const auto distance = sign * (s.unsqueeze(1) - s.unsqueeze(0));
      std::vector<at::Tensor> rows;
      for (std::int64_t i = 0; i < outputs; ++i) {
        const auto top = order.narrow(0, i, 1);
        const auto lead = s.index_select(0, top) - s;
        const auto top_sign = sign.index_select(0, top);
        const auto change =
            at::where(top_sign == sign, top_sign * lead.unsqueeze(1), distance.index_select(0, top) - distance);
        const auto fall = static_cast<double>(n + 1 - 2 * (i + 1)) * lead - change.sum(1);
        const auto weight = (-fall / temperature_).exp();
        rows.push_back(weight / weight.sum());
      }
      return at::stack(rows);
    });
  }

 private:
  double temperature_;
};

Cost neuralsort_cost(const PoolingShape& shape, const Options&) {
  // The falls by rank, which a gather keeps, and the weights.
  auto cost = mixture_cost(shape, 2);
  // The slopes, which all batch rows share; the ranking of the scores, and the ranks of the rows.
  cost.activation_bytes += static_cast<double>(shape.pooled_length * shape.length * score_bytes(shape.dtype)) +
                           ranking_bytes(shape) + static_cast<double>(shape.batch * shape.length) * sizeof(std::int64_t);
  return cost;
}

const RegisterPooling registration({
    {.name = "neuralsort",
     .description = "the first k rows of NeuralSort, by prefix sums instead of pairwise differences",
     .source = "Grover et al. 2019, arXiv 1903.08850, NeuralSort",
     .options = {{.name = "temperature",
                  .type = OptionType::real,
                  .fallback = 1e-3,
                  .meaning = "t; lower is harder. On uniform scores in [0, 1] the default brings the outputs to a cosine of "
                             "0.93 with the hard rows at 256 -> 32 and 0.68 at 2048 -> 128; t = 1 to 0.28 and 0.21",
                  .minimum = 1e-9,
                  .maximum = 1e6}}},
    [](const Options& options) { return std::make_shared<NeuralSort>(options); },
    [](const Options& options) { return std::make_shared<NeuralSortReference>(options); },
    neuralsort_cost,
    false,
    {{"temperature", 1e-4}},
});

}  // namespace
}  // namespace transpool
