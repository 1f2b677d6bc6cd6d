#include "operators/noise.h"
#include "operators/pooling/mixture.h"
#include "operators/pooling/relaxed_subset_mixture.h"
#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Under every real logit, yet finite, so that no difference of two is NaN.
constexpr double floor_logit = -1e300;

/// u (B, n) without the element at `top` (B, 1), the row of its largest.
at::Tensor without(const at::Tensor& u, const at::Tensor& top) { return u.scatter(1, top, floor_logit); }

/// Whether what rows of more than half the weight ask for may be left out, `heavy` telling them. Only the CPU is asked: on a
/// device the answer would cost more than the work.
bool none_of(const at::Tensor& heavy) { return heavy.is_cpu() && !heavy.any().item<bool>(); }

/// log(1 - p) of p = softmax(u). A row that has more than half the weight is taken as log sum of the others - log sum of
/// all, so that p = 1 costs no digits. All others alike, so that equal scores stay equal bit for bit.
at::Tensor log_rest(const at::Tensor& u, const at::Tensor& log_weights, const at::Tensor& top) {
  const auto weights = log_weights.exp();
  const auto light = at::log1p(-weights.clamp_max(0.5)), heavy = weights > 0.5;
  if (none_of(heavy)) return light;
  const auto rest = without(u, top).logsumexp(1, /*keepdim=*/true) - u.logsumexp(1, /*keepdim=*/true);
  return at::where(heavy, rest, light);
}

/// Rounds p = softmax(a / t), a += log(1 - p). Plain autograd would keep several tensors (B, n) a round, all in
/// float64; this keeps the logarithms of the weights alone.
class RelaxedSubsetFunction : public torch::autograd::Function<RelaxedSubsetFunction> {
 public:
  /// a (B, n) float64, finite. Gives weights (B, k, n) of `dtype` and the row of largest weight (B, k).
  static variable_list forward(AutogradContext* context, const at::Tensor& a, std::int64_t k,
                               const std::optional<at::Tensor>& lengths, double temperature, at::ScalarType dtype) {
    auto log_weights = at::empty({a.size(0), k, a.size(1)}, a.options().dtype(dtype));
    auto leaders = at::empty({a.size(0), k}, a.options().dtype(at::kLong));
    auto now = lengths ? a.masked_fill(valid_positions(*lengths, a.size(1)).logical_not_(), floor_logit) : a;
    for (std::int64_t i = 0; i < k; ++i) {
      // Shifted before it is scaled, which keeps the digits of large scores.
      const auto u = (now - now.amax(1, /*keepdim=*/true)).div_(temperature).clamp_min_(floor_logit);
      const auto log_weight = u.log_softmax(1);
      const auto top = u.argmax(1, /*keepdim=*/true);
      log_weights.select(1, i).copy_(log_weight.clamp_min(-1e30));
      leaders.select(1, i).copy_(top.squeeze(1));
      if (i + 1 < k) now = (now + log_rest(u, log_weight, top)).clamp_min_(floor_logit);
    }
    context->save_for_backward({log_weights, leaders});
    context->saved_data["temperature"] = temperature;
    context->mark_non_differentiable({leaders});
    return {log_weights.exp(), leaders};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto& log_weights = saved[0];
    const auto& leaders = saved[1];
    const auto temperature = context->saved_data["temperature"].toDouble();
    at::Tensor after;  // gradient in a / t after the round
    for (std::int64_t i = log_weights.size(1); i-- > 0;) {
      const auto log_weight = log_weights.select(1, i).to(at::kDouble);
      const auto weight = log_weight.exp();
      const auto own = gradients[0].select(1, i).to(at::kDouble);
      auto before = weight * (own - (weight * own).sum(1, /*keepdim=*/true));
      if (after.defined())
        before = before + after + push_backward(after / temperature, log_weight, weight, leaders.narrow(1, i, 1));
      after = before;
    }
    return {after / temperature, Variable(), Variable(), Variable(), Variable()};
  }

 private:
  /// The derivative of log(1 - p_j) in u is q - p for a row of more than half the weight, q being the weights without it,
  /// and (p - [j]) p_j / (1 - p_j) for every other.
  static at::Tensor push_backward(const at::Tensor& gradient, const at::Tensor& log_weight, const at::Tensor& weight,
                                  const at::Tensor& top) {
    const auto heavy = weight > 0.5;
    if (none_of(heavy)) {
      const auto light = gradient * weight / (1 - weight);
      return weight * light.sum(1, /*keepdim=*/true) - light;
    }
    const auto light = gradient.masked_fill(heavy, 0) * weight / (1 - weight.clamp_max(0.5));
    const auto lead = (gradient * heavy).sum(1, /*keepdim=*/true);
    const auto others = without(log_weight, top).softmax(1);
    return weight * light.sum(1, /*keepdim=*/true) - light + lead * (others - weight);
  }
};

/// Gumbel noise (B, n) in float64, the same for an operator and its reference.
at::Tensor gumbel_noise(const at::Tensor& scores, const Options& options) {
  const auto uniform =
      at::rand(scores.sizes(), noise_generator(options, scores.device()), scores.options().dtype(at::kDouble));
  return -(-uniform.clamp_min(std::numeric_limits<double>::min()).log()).log();
}

class RelaxedSubset : public PoolingOperator {
 public:
  explicit RelaxedSubset(const Options& options) : options_(options) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto clean = clean_scores(scores, lengths);
    auto a = clean.to(at::kDouble);
    if (options_.flag("gumbel")) a = a + gumbel_noise(scores, options_);
    const auto temperature = options_.real("temperature");
    if (relaxed_subset_mixture_takes(x)) return relaxed_subset_mixture(x, clean, a, k, lengths, temperature);
    const auto parts = RelaxedSubsetFunction::apply(a, k, lengths, temperature, scores.scalar_type());
    return mix_rows(x, scores, parts[0], lengths, parts[1]);
  }
  std::string backend(const at::Device& device) const override { return relaxed_subset_runs_on(device) ? "cuda" : "aten"; }

 private:
  Options options_;
};

/// Row by row, by autograd: weights as plain exponentials, and 1 - p as the sum of all others.
class RelaxedSubsetReference : public PoolingOperator {
 public:
  explicit RelaxedSubsetReference(const Options& options) : options_(options) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    const auto temperature = options_.real("temperature");
    const auto noise = options_.flag("gumbel") ? gumbel_noise(scores, options_) : at::zeros(scores.sizes(), at::kDouble);
    return mix_by_rows(x, scores, k, lengths, [&](const at::Tensor& s, std::int64_t outputs, std::int64_t b) {
      auto a = s + noise[b].narrow(0, 0, s.size(0)).to(s.device());
      std::vector<at::Tensor> rows;
      for (std::int64_t i = 0; i < outputs; ++i) {
        const auto u = (a - a.max().detach()) / temperature;
        rows.push_back(u.exp() / u.exp().sum());
        if (i + 1 < outputs) a = a + log_others(u);
      }
      return at::stack(rows);
    });
  }

 private:
  /// log(1 - p_j) for each row of u (L,), L >= 2. One with most of the weight sums the others one by one; for the rest the
  /// sum of all less their own keeps equal scores exactly equal.
  static at::Tensor log_others(const at::Tensor& u) {
    const auto all = u.logsumexp(0);
    const auto share = (u - all).exp();
    const auto j = share.detach().argmax().item<std::int64_t>();
    if (share[j].item<double>() <= 0.5) return (1 - share).log();
    const auto before = u.narrow(0, 0, j), after = u.narrow(0, j + 1, u.size(0) - j - 1);
    const auto largest = at::cat({before, after}).logsumexp(0) - all;
    return at::cat({(1 - (before - all).exp()).log(), largest.unsqueeze(0), (1 - (after - all).exp()).log()});
  }

  Options options_;
};

Cost relaxed_subset_cost(const PoolingShape& shape, const Options&) {
  // The weights and their logarithms; the row of largest weight of each round.
  auto cost = mixture_cost(shape, 2);
  cost.activation_bytes += static_cast<double>(shape.batch * shape.pooled_length) * sizeof(std::int64_t);
  return cost;
}

const RegisterPooling registration({
    {.name = "relaxed_subset",
     .description =
         "relaxed subset sampling, without noise the neural nearest neighbours relaxation: a += log(1 - softmax(a / t))",
     .source = "Xie and Ermon 2019, arXiv 1901.10517, relaxed subsets; Ploetz and Roth 2018, arXiv 1810.12575, equation 9",
     .options =
         {{.name = "temperature",
           .type = OptionType::real,
           .fallback = 0.3,
           .meaning =
               "t; lower is harder, but under 0.5 a row that is chosen again amplifies what came before by up to 1 / t "
               "a round, gradients too. On uniform scores in [0, 1] the default brings the outputs to a cosine of "
               "0.13 with the hard rows at 256 -> 32 and 0.07 at 2048 -> 128; t = 0.01 to 0.40 and 0.22, "
               "t = 1e-4 to 0.97 and 0.72",
           .minimum = 1e-9,
           .maximum = 1e6},
          {.name = "gumbel",
           .type = OptionType::boolean,
           .fallback = false,
           .meaning = "adds Gumbel noise to the scores, which are then the logarithms of the rows' odds"},
          seed_option()},
     .capabilities = {.stochastic = true}},
    [](const Options& options) { return std::make_shared<RelaxedSubset>(options); },
    [](const Options& options) { return std::make_shared<RelaxedSubsetReference>(options); },
    relaxed_subset_cost,
    false,
    {{"temperature", 1e-4}},
});

}  // namespace
}  // namespace transpool
