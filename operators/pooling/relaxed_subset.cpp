#include "operators/noise.h"
#include "operators/pooling/mixture.h"
#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

#ifdef TRANSPOOL_CUDA
#include "operators/pooling/relaxed_subset_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Under every real logit, yet finite, so that no difference of two is NaN.
constexpr double floor_logit = -1e300;

/// u (B, n) without the element at `top` (B, 1), the row of its largest.
at::Tensor without(const at::Tensor& u, const at::Tensor& top) { return u.scatter(1, top, floor_logit); }

/// log(1 - p) of p = softmax(u). A row that has more than half the weight is taken as log sum of the others - log sum of
/// all, so that p = 1 costs no digits. All others alike, so that equal scores stay equal bit for bit.
at::Tensor log_rest(const at::Tensor& u, const at::Tensor& log_weights, const at::Tensor& top) {
  const auto weights = log_weights.exp();
  const auto rest = without(u, top).logsumexp(1, /*keepdim=*/true) - u.logsumexp(1, /*keepdim=*/true);
  return at::where(weights > 0.5, rest, at::log1p(-weights.clamp_max(0.5)));
}

#ifdef TRANSPOOL_CUDA

bool kernel_takes(const at::Tensor& a) { return a.is_cuda() && relaxed_subset_fits(a.size(1)); }

RelaxedSubsetArguments arguments_of(const at::Tensor& log_weights, const at::Tensor& leaders, const at::Tensor& log_rest,
                                    double temperature) {
  RelaxedSubsetArguments arguments;
  arguments.log_weights = log_weights.data_ptr();
  arguments.top = leaders.data_ptr<std::int64_t>();
  arguments.log_rest = log_rest.data_ptr<double>();
  arguments.batch = log_weights.size(0);
  arguments.rounds = log_weights.size(1);
  arguments.length = log_weights.size(2);
  arguments.temperature = temperature;
  arguments.float64_weights = log_weights.scalar_type() == at::kDouble;
  return arguments;
}

void check(const char* error) { TORCH_CHECK(error == nullptr, "relaxed_subset: ", error); }

#endif

/// What the rounds give: weights and their logarithms (B, k, n), the row of largest weight (B, k), and the logarithm of the
/// weight of all others (B, k) float64, which the kernels alone compute and read.
struct Rounds {
  at::Tensor weights, log_weights, leaders, log_rest;
};

/// Rounds p = softmax(a / t), a += log(1 - p). Plain autograd would keep several tensors (B, n) a round, all in
/// float64; this keeps the logarithms of the weights alone. On CUDA all rounds are one launch, a cluster of blocks a batch
/// row: a round needs the sums of the one before over all columns, so that a launch a round would be mostly waiting. The
/// logarithms are kept there too: computed again from a, each round would cost its reductions once more in the backward
/// pass.
class RelaxedSubsetFunction : public torch::autograd::Function<RelaxedSubsetFunction> {
 public:
  /// a (B, n) float64, finite. Gives weights (B, k, n) of `dtype` and the row of largest weight (B, k).
  static variable_list forward(AutogradContext* context, const at::Tensor& a, std::int64_t k,
                               const std::optional<at::Tensor>& lengths, double temperature, at::ScalarType dtype) {
    const auto start = lengths ? a.masked_fill(valid_positions(*lengths, a.size(1)).logical_not_(), floor_logit) : a;
    const auto rounds = run(start, k, temperature, dtype);
    context->save_for_backward({rounds.log_weights, rounds.leaders, rounds.log_rest});
    context->saved_data["temperature"] = temperature;
    context->mark_non_differentiable({rounds.leaders});
    return {rounds.weights, rounds.leaders};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto temperature = context->saved_data["temperature"].toDouble();
    const auto gradient =
        run_backward({.log_weights = saved[0], .leaders = saved[1], .log_rest = saved[2]}, gradients[0], temperature);
    return {gradient, Variable(), Variable(), Variable(), Variable()};
  }

 private:
  static Rounds run(const at::Tensor& a, std::int64_t k, double temperature, at::ScalarType dtype) {
    auto log_weights = at::empty({a.size(0), k, a.size(1)}, a.options().dtype(dtype));
    auto leaders = at::empty({a.size(0), k}, a.options().dtype(at::kLong));
#ifdef TRANSPOOL_CUDA
    if (kernel_takes(a)) {
      const c10::cuda::CUDAGuard guard(a.device());
      const auto start = a.contiguous();
      const auto weights = at::empty_like(log_weights);
      const auto log_rest = at::empty({a.size(0), k}, a.options());
      auto arguments = arguments_of(log_weights, leaders, log_rest, temperature);
      arguments.a = start.const_data_ptr<double>();
      arguments.weights = weights.data_ptr();
      check(relaxed_subset_forward_cuda(arguments, c10::cuda::getCurrentCUDAStream().stream()));
      return {weights, log_weights, leaders, log_rest};
    }
#endif
    auto now = a;
    for (std::int64_t i = 0; i < k; ++i) {
      // Shifted before it is scaled, which keeps the digits of large scores.
      const auto u = (now - now.amax(1, /*keepdim=*/true)).div_(temperature).clamp_min_(floor_logit);
      const auto log_weight = u.log_softmax(1);
      const auto top = u.argmax(1, /*keepdim=*/true);
      log_weights.select(1, i).copy_(log_weight.clamp_min(-1e30));
      leaders.select(1, i).copy_(top.squeeze(1));
      if (i + 1 < k) now = (now + log_rest(u, log_weight, top)).clamp_min_(floor_logit);
    }
    return {log_weights.exp(), log_weights, leaders, at::Tensor()};
  }

  static at::Tensor run_backward(const Rounds& rounds, const at::Tensor& weight_gradient, double temperature) {
    const auto k = rounds.log_weights.size(1);
#ifdef TRANSPOOL_CUDA
    if (rounds.log_rest.defined()) {
      const c10::cuda::CUDAGuard guard(rounds.log_rest.device());
      const auto given = weight_gradient.contiguous();
      const auto gradient = at::empty({given.size(0), given.size(2)}, rounds.log_rest.options());
      auto arguments = arguments_of(rounds.log_weights, rounds.leaders, rounds.log_rest, temperature);
      arguments.weight_gradient = given.const_data_ptr();
      arguments.gradient = gradient.data_ptr<double>();
      check(relaxed_subset_backward_cuda(arguments, c10::cuda::getCurrentCUDAStream().stream()));
      return gradient;
    }
#endif
    at::Tensor after;  // gradient in a / t after the round
    for (std::int64_t i = k; i-- > 0;) {
      const auto log_weight = rounds.log_weights.select(1, i).to(at::kDouble);
      const auto weight = log_weight.exp();
      const auto own = weight_gradient.select(1, i).to(at::kDouble);
      auto before = weight * (own - (weight * own).sum(1, /*keepdim=*/true));
      if (after.defined())
        before = before + after + push_backward(after / temperature, log_weight, weight, rounds.leaders.narrow(1, i, 1));
      after = before;
    }
    return after / temperature;
  }

  /// The derivative of log(1 - p_j) in u is q - p for a row of more than half the weight, q being the weights without it,
  /// and (p - [j]) p_j / (1 - p_j) for every other.
  static at::Tensor push_backward(const at::Tensor& gradient, const at::Tensor& log_weight, const at::Tensor& weight,
                                  const at::Tensor& top) {
    const auto heavy = weight > 0.5;
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
    auto a = clean_scores(scores, lengths).to(at::kDouble);
    if (options_.flag("gumbel")) a = a + gumbel_noise(scores, options_);
    const auto parts = RelaxedSubsetFunction::apply(a, k, lengths, options_.real("temperature"), scores.scalar_type());
    return mix_rows(x, scores, parts[0], lengths, parts[1]);
  }
#ifdef TRANSPOOL_CUDA
  std::string backend(const at::Device& device) const override { return device.is_cuda() ? "cuda" : "aten"; }
#endif

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
     .source = "Xie and Ermon 2019, arXiv 1901.10517, algorithm 1; Ploetz and Roth 2018, arXiv 1810.12575, equation 9",
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
