#include "operators/pooling/mixture.h"
#include "operators/pooling/ranking.h"
#include "operators/pooling/semiseparable_mixture.h"

namespace transpool {
namespace {

/// k softmaxes in a row, after each of which its highest row leaves. Who leaves is known from the order of the scores, so
/// all k are taken at once, without a loop.
class IterativeSoftmax : public PoolingOperator {
 public:
  explicit IterativeSoftmax(const Options& options) : alpha_(options.real("alpha")), form_(options.text("form")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    if (form_ == "score" && semiseparable_takes(x, scores))
      return semiseparable_mixture(x, scores, k, lengths, {.sharpness = alpha_, .two_sided = false});
    const auto clean = clean_scores(scores, lengths);
    const auto ranking = rank_scores(clean, lengths);
    auto highest = ranking.scores.narrow(1, 0, k).unsqueeze(2);
    // Shifted before it is scaled, since the differences are exact; as a shift it has no gradient.
    if (form_ == "score") highest = highest.detach();
    const auto lead = clean.unsqueeze(1) - highest;
    const auto logits = form_ == "score" ? lead * alpha_ : lead.square() * -alpha_;
    if (form_ == "all_rows")
      return mix_rows(x, scores, mixture_softmax(logits, lengths), lengths, ranking.leaders.narrow(1, 0, k));
    const auto round = at::arange(k, ranking.ranks.options()).unsqueeze(1);
    const auto weights = mixture_softmax(logits, lengths, ranking.ranks.unsqueeze(1) < round);
    return mix_rows(x, scores, weights, lengths, ranking.order.narrow(1, 0, k));
  }
  std::string backend(const at::Device& device) const override {
    return form_ == "score" ? semiseparable_backend(device) : "aten";
  }

 private:
  double alpha_;
  std::string form_;
};

/// Round by round on a list of the rows that are left.
class IterativeSoftmaxReference : public PoolingOperator {
 public:
  explicit IterativeSoftmaxReference(const Options& options) : alpha_(options.real("alpha")), form_(options.text("form")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return mix_by_rows(x, scores, k, lengths, [this](const at::Tensor& s, std::int64_t outputs, std::int64_t) {
      std::vector<std::int64_t> left(static_cast<std::size_t>(s.size(0)));
      for (std::size_t j = 0; j < left.size(); ++j) left[j] = static_cast<std::int64_t>(j);
      const auto every = at::tensor(left, s.options().dtype(at::kLong));
      const auto on_host = s.detach().to(at::kCPU).contiguous();
      std::vector<at::Tensor> rows;
      for (std::int64_t i = 0; i < outputs; ++i) {
        const auto highest = highest_of(on_host.const_data_ptr<double>(), left);
        const auto mixed = form_ == "all_rows" ? every : at::tensor(left, every.options());
        const auto lead = s.index_select(0, mixed) - s[highest];
        const auto weight = (form_ == "score" ? alpha_ * lead : -alpha_ * lead * lead).exp();
        rows.push_back(at::zeros_like(s).scatter(0, mixed, weight / weight.sum()));
        std::erase(left, highest);
      }
      return at::stack(rows);
    });
  }

 private:
  static std::int64_t highest_of(const double* scores, const std::vector<std::int64_t>& rows) {
    auto highest = rows.front();
    for (const auto row : rows)
      if (scores[row] > scores[highest]) highest = row;
    return highest;
  }

  double alpha_;
  std::string form_;
};

Cost iterative_softmax_cost(const PoolingShape& shape, const Options& options) {
  if (options.text("form") == "score") return semiseparable_cost(shape, /*two_sided=*/false);
  // The weights and the differences; the ranking that the highest scores are gathered by, and the scores.
  auto cost = mixture_cost(shape, 2);
  cost.activation_bytes += ranking_bytes(shape);
  return cost;
}

const RegisterPooling registration({
    {.name = "iterative_softmax",
     .description = "k softmaxes in a row, after each of which its highest row leaves",
     .source = "Goyal et al. 2017, arXiv 1708.00111, A Continuous Relaxation of Beam Search; baseline of arXiv 2010.15552",
     .options =
         {{.name = "alpha",
           .type = OptionType::real,
           .fallback = 1e3,
           .meaning =
               "sharpness; higher is harder, and the authors' value is 1. With form score on uniform scores in [0, 1] the "
               "default brings the outputs to a cosine of 0.96 with the hard rows at 256 -> 32 and 0.73 at 2048 -> 128, "
               "and about one row an output still has a useful gradient; alpha = 1 to 0.13 and 0.07, alpha = 1e4 to "
               "0.99 and 0.96",
           .minimum = 0,
           .maximum = 1e9},
          {.name = "form",
           .type = OptionType::choice,
           .fallback = "score",
           .meaning = "what is weighed: softmax(alpha s) of the rows left (gives the published numbers of 2010.15552), "
                      "softmax(-alpha (s - max)^2) of the rows left (its published code), or that of all rows "
                      "(1708.00111)",
           .choices = {"score", "squared_distance", "all_rows"}}}},
    [](const Options& options) { return std::make_shared<IterativeSoftmax>(options); },
    [](const Options& options) { return std::make_shared<IterativeSoftmaxReference>(options); },
    iterative_softmax_cost,
    false,
    {{"alpha", 1e4}},
});

}  // namespace
}  // namespace transpool
