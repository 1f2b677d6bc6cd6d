#include "operators/noise.h"
#include "operators/pooling/mixture.h"
#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Perturbation {
  std::int64_t samples;
  double temperature;
  bool keep_order;
  Options options;  // for the seed

  explicit Perturbation(const Options& given)
      : samples(given.integer("samples")),
        temperature(given.real("temperature")),
        keep_order(given.flag("keep_order")),
        options(given) {}

  /// Standard normal noise (B, S, n) of one call, the same numbers for scores of any dtype.
  at::Tensor draw(const at::Tensor& scores) const {
    return at::randn({scores.size(0), samples, scores.size(1)}, noise_generator(options, scores.device()),
                     scores.options().dtype(at::kFloat))
        .to(scores.scalar_type());
  }
};

/// Clean scores (B, n) and noise (B, S, n) -> weights (B, k, n): how often each row is the j-th one selected. Of the
/// selections S index sets are kept, never their one-hot matrices.
class PerturbedSelectionFunction : public torch::autograd::Function<PerturbedSelectionFunction> {
 public:
  static Variable forward(AutogradContext* context, const at::Tensor& scores, const at::Tensor& noise, std::int64_t k,
                          const std::optional<at::Tensor>& lengths, double temperature, bool keep_order) {
    const auto batch = noise.size(0), samples = noise.size(1), n = noise.size(2);
    // In float64, so that no rounding decides who is selected.
    const auto noisy =
        at::add(scores.to(at::kDouble).unsqueeze(1), noise.to(at::kDouble), temperature).view({batch * samples, n});
    const auto sample_lengths = lengths ? std::optional(lengths->repeat_interleave(samples, 0)) : std::nullopt;
    const auto selected = select_top_rows(noisy, k, sample_lengths, keep_order).view({batch, samples, k});
    context->save_for_backward({selected, noise, lengths.value_or(at::Tensor())});
    context->saved_data["temperature"] = temperature;

    const auto cells = cell_of(selected, n).flatten(1);
    const auto present = (selected >= 0).to(scores.scalar_type()).flatten(1);
    const auto counts = at::zeros({batch, k * n}, scores.options()).scatter_add_(1, cells, present);
    return counts.div_(static_cast<double>(samples)).view({batch, k, n});
  }

  /// The estimator of the perturbed maximizer's gradient: mean over the samples of <gradient, selection> noise /
  /// temperature.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto& selected = saved[0];
    const auto& noise = saved[1];
    const auto n = noise.size(2);
    const auto gains = gradients[0].reshape({noise.size(0), -1}).gather(1, cell_of(selected, n).flatten(1));
    const auto gain = gains.view(selected.sizes()).masked_fill(selected < 0, 0).sum(2);
    const double scale = 1 / (context->saved_data["temperature"].toDouble() * static_cast<double>(noise.size(1)));
    auto gradient = at::bmm(gain.unsqueeze(1), noise).squeeze(1).mul_(scale);
    if (saved[2].defined()) gradient.masked_fill_(valid_positions(saved[2], n).logical_not_(), 0);
    return {gradient, Variable(), Variable(), Variable(), Variable(), Variable()};
  }

 private:
  /// The place in a flat (k, n) matrix of each selected row; that of row 0 where there is none.
  static at::Tensor cell_of(const at::Tensor& selected, std::int64_t n) {
    return selected.clamp_min(0) + at::arange(selected.size(2), selected.options()) * n;
  }
};

class PerturbedTopk : public PoolingOperator {
 public:
  explicit PerturbedTopk(const Options& options) : perturbation_(options) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto clean = clean_scores(scores, lengths);
    const auto weights = PerturbedSelectionFunction::apply(clean, perturbation_.draw(clean), k, lengths,
                                                           perturbation_.temperature, perturbation_.keep_order);
    return mix_rows(x, scores, weights, lengths);
  }

 private:
  Perturbation perturbation_;
};

/// One sample at a time: sorts on the host, adds up one-hot matrices, and gets the estimator from autograd by giving each
/// matrix the factor 1 + <noise, scores - constant scores> / temperature, whose value is 1.
class PerturbedTopkReference : public PoolingOperator {
 public:
  explicit PerturbedTopkReference(const Options& options) : perturbation_(options) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    const auto noise = perturbation_.draw(scores);
    return mix_by_rows(x, scores, k, lengths, [&](const at::Tensor& row, std::int64_t outputs, std::int64_t b) {
      auto sum = at::zeros({outputs, row.size(0)}, row.options());
      const auto change = row - row.detach();
      const auto own = noise[b].narrow(1, 0, row.size(0));
      for (std::int64_t s = 0; s < perturbation_.samples; ++s) {
        const auto factor = 1 + own[s].to(at::kDouble).dot(change) / perturbation_.temperature;
        const auto noisy = row.detach().to(scores.scalar_type()) + perturbation_.temperature * own[s];
        sum = sum + factor * one_hot(noisy, outputs).to(row.options());
      }
      return sum / static_cast<double>(perturbation_.samples);
    });
  }

 private:
  at::Tensor one_hot(const at::Tensor& noisy, std::int64_t outputs) const {
    std::vector<std::pair<double, std::int64_t>> ranked;
    for (std::int64_t i = 0; i < noisy.size(0); ++i) ranked.emplace_back(-noisy[i].item<double>(), i);
    std::sort(ranked.begin(), ranked.end());
    std::vector<std::int64_t> best;
    for (std::int64_t j = 0; j < outputs; ++j) best.push_back(ranked[static_cast<std::size_t>(j)].second);
    if (perturbation_.keep_order) std::sort(best.begin(), best.end());
    const auto index = at::tensor(best, noisy.options().dtype(at::kLong));
    return at::zeros({outputs, noisy.size(0)}, noisy.options()).scatter_(1, index.unsqueeze(1), 1);
  }

  Perturbation perturbation_;
};

Cost perturbed_topk_cost(const PoolingShape& shape, const Options& options) {
  const auto samples = static_cast<double>(shape.batch * options.integer("samples"));
  const auto length = static_cast<double>(shape.length);
  auto cost = mixture_cost(shape, /*kept_weights=*/1);
  cost.backward_flops += 2 * samples * length;
  cost.activation_bytes += samples * (length * static_cast<double>(score_bytes(shape.dtype)) +
                                      static_cast<double>(shape.pooled_length) * sizeof(std::int64_t));
  return cost;
}

const RegisterPooling registration({
    {.name = "perturbed_topk",
     .description = "mean of hard top-k selections under normal noise, with the perturbed maximizer's gradient estimator",
     .source = "perturbed maximizer of arXiv 2002.08676, y = E[argmax <y, s + sigma Z>], Monte Carlo estimates; top-k of "
               "Differentiable Patch Selection, arXiv 2104.03059",
     .options = {{.name = "samples",
                  .type = OptionType::integer,
                  .fallback = 100,
                  .meaning = "noisy selections that are averaged",
                  .minimum = 1,
                  .maximum = 100000},
                 {.name = "temperature",
                  .type = OptionType::real,
                  .fallback = 0.05,
                  .meaning = "standard deviation of the noise on the scores",
                  .minimum = 1e-6,
                  .maximum = 1e4},
                 {.name = "keep_order",
                  .type = OptionType::boolean,
                  .fallback = true,
                  .meaning = "output j averages the j-th selected row by position, else by falling noisy score"},
                 seed_option()},
     .capabilities = {.stochastic = true, .estimated_gradient = true}},
    [](const Options& options) { return std::make_shared<PerturbedTopk>(options); },
    [](const Options& options) { return std::make_shared<PerturbedTopkReference>(options); },
    perturbed_topk_cost,
    /*distinct_rows=*/false,
    /*sharp=*/{{"temperature", 1e-4}},
});

}  // namespace
}  // namespace transpool
