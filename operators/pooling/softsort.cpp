#include "operators/pooling/mixture.h"
#include "operators/pooling/ranking.h"
#include "operators/pooling/semiseparable_mixture.h"

namespace transpool {
namespace {

/// Output i weighs each row by how near its score is to the i-th highest: softmax_j(-|s_(i) - s_j|^p / t).
class SoftSort : public PoolingOperator {
 public:
  explicit SoftSort(const Options& options) : temperature_(options.real("temperature")), power_(options.integer("power")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    if (power_ == 1 && semiseparable_takes(x, scores))
      return semiseparable_mixture(x, scores, k, lengths, {.sharpness = 1 / temperature_, .two_sided = true});
    const auto clean = clean_scores(scores, lengths);
    const auto ranking = rank_scores(clean, lengths);
    const auto difference = ranking.scores.narrow(1, 0, k).unsqueeze(2) - clean.unsqueeze(1);
    const auto distance = power_ == 1 ? difference.abs() : difference.square();
    const auto weights = mixture_softmax(distance * (-1 / temperature_), lengths);
    return mix_rows(x, scores, weights, lengths, ranking.leaders.narrow(1, 0, k));
  }
  std::string backend(const at::Device& device) const override {
    return power_ == 1 ? semiseparable_backend(device) : "aten";
  }

 private:
  double temperature_;
  std::int64_t power_;
};

/// Row by row, ranks by counting, plain exponentials: the nearest row's is 1, so that none can overflow.
class SoftSortReference : public PoolingOperator {
 public:
  explicit SoftSortReference(const Options& options)
      : temperature_(options.real("temperature")), power_(options.integer("power")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return mix_by_rows(x, scores, k, lengths, [this](const at::Tensor& s, std::int64_t outputs, std::int64_t) {
      const auto order = order_by_counting(s);
      std::vector<at::Tensor> rows;
      for (std::int64_t i = 0; i < outputs; ++i) {
        const auto distance = (s - s.index_select(0, order.narrow(0, i, 1))).abs();
        const auto near = (-(power_ == 1 ? distance : distance * distance) / temperature_).exp();
        rows.push_back(near / near.sum());
      }
      return at::stack(rows);
    });
  }

 private:
  double temperature_;
  std::int64_t power_;
};

Cost softsort_cost(const PoolingShape& shape, const Options& options) {
  if (options.integer("power") == 1) return semiseparable_cost(shape, /*two_sided=*/true);
  // The differences and the weights; the ranking that the highest scores are gathered by, and the scores.
  auto cost = mixture_cost(shape, 2);
  cost.activation_bytes += ranking_bytes(shape);
  return cost;
}

const RegisterPooling registration({
    {.name = "softsort",
     .description = "the first k rows of SoftSort: softmax of the distances to the i-th highest score",
     .source = "Prillo and Eisenschlos 2020, arXiv 2006.16038, SoftSort",
     .options = {{.name = "temperature",
                  .type = OptionType::real,
                  .fallback = 1e-3,
                  .meaning =
                      "t; lower is harder. With power 1 on uniform scores in [0, 1] the default brings the outputs to a "
                      "cosine of 0.92 with the hard rows at 256 -> 32 and 0.61 at 2048 -> 128; t = 1 to 0.09 and 0.04",
                  .minimum = 1e-9,
                  .maximum = 1e6},
                 {.name = "power",
                  .type = OptionType::integer,
                  .fallback = 1,
                  .meaning = "p of the distance |s_(i) - s_j|^p",
                  .minimum = 1,
                  .maximum = 2}}},
    [](const Options& options) { return std::make_shared<SoftSort>(options); },
    [](const Options& options) { return std::make_shared<SoftSortReference>(options); },
    softsort_cost,
    false,
    {{"temperature", 1e-4}},
});

}  // namespace
}  // namespace transpool
