#include "operators/pooling/mixture.h"
#include "operators/pooling/selection.h"
#include "operators/pooling/soft_topk_plan.h"

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Gap between neighbouring scores, in temperatures, from which on nothing passes between the two sides: e^-40 at the
/// middle. Wider gaps are shortened to it, which changes no weight, so that far scores cost the near ones no digits.
constexpr double parting_gap = 80;

/// Added to the diagonal of the linear systems: couplings this weak move no weight that float64 shows, and must not make a
/// system singular.
constexpr double ridge = 1e-14;

/// The k anchors of ranks 1..k, each of which takes one row, and the one of the rest, which takes length - k rows; a target
/// that takes nothing is inactive. What each takes: (B, k + 1) float64.
at::Tensor mass_of(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths) {
  const auto length = lengths ? lengths->to(at::kDouble).unsqueeze(1)
                              : at::full({scores.size(0), 1}, static_cast<double>(scores.size(1)), scores.options());
  const auto height = at::arange(k, -1, -1, scores.options());
  return at::where(height > 0, (length + height - k).clamp(0, 1), (length - k).clamp_min(0));
}

/// (B, n) scores over the temperature by rank, 0 for the highest, the source rows of the ranks, and (B, k + 1) potentials
/// that part the ranks in the middle between neighbouring scores: the plan's own at temperature 0, and a start for any
/// other.
struct Start {
  at::Tensor falling, order, potentials;
};

Start start_of(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths, double temperature) {
  auto [sorted, order] = rankable_scores(scores, lengths).sort(/*stable=*/true, 1, /*descending=*/true);
  const auto n = scores.size(1);
  const auto finite = sorted.clamp_min(-4 * score_bound);  // padding, which ranks last
  const auto gaps = ((finite.narrow(1, 0, n - 1) - finite.narrow(1, 1, n - 1)) / temperature).clamp_max(parting_gap);
  const auto falling = -at::constant_pad_nd(gaps.cumsum(1), {1, 0});
  const auto below = at::cat({falling.narrow(1, 1, n - 1), falling.narrow(1, n - 1, 1) - parting_gap}, 1);
  const auto bounds = (falling + below).narrow(1, 0, k) / 2;
  const auto potentials = -at::constant_pad_nd(bounds.flip(1).cumsum(1).flip(1), {0, 1});
  return {falling, order, potentials};
}

/// Scores (B, n) float64, clean -> weights (B, k, n) of `dtype`. Keeps the levels, their order and the potentials, O(n + k),
/// and computes the plan again in the backward pass, which solves the optimality conditions differentiated.
///
/// With the logits' gradient Q, and the potentials moving by dh = -H^-1 d(column sums): dL/dlevel_i = sum over j of (Q_ij -
/// P_ij y_j) (height_j - mean height_i), where H y = column sums of Q.
class SoftTopkFunction : public torch::autograd::Function<SoftTopkFunction> {
 public:
  static Variable forward(AutogradContext* context, const at::Tensor& scores, std::int64_t k,
                          const std::optional<at::Tensor>& lengths, double temperature, std::int64_t iterations,
                          std::int64_t newton_steps, at::ScalarType dtype) {
    const auto mass = mass_of(scores, k, lengths);
    const auto start = start_of(scores, k, lengths, temperature);
    const auto potentials = start.potentials.masked_fill(mass <= 0, -std::numeric_limits<double>::infinity());
    const auto [weights, found] =
        soft_topk_plan(start.falling, start.order, potentials, mass, lengths, iterations, newton_steps, ridge, dtype);
    context->saved_data["k"] = k;
    context->saved_data["temperature"] = temperature;
    context->save_for_backward({start.falling, found, lengths.value_or(at::Tensor()), start.order});
    return weights;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto lengths = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const auto mass = mass_of(saved[0], context->saved_data["k"].toInt(), lengths);
    const auto gradient = soft_topk_plan_backward(gradients[0], saved[0], saved[3], saved[1], mass, lengths, ridge)
                              .div_(context->saved_data["temperature"].toDouble());
    return {gradient, Variable(), Variable(), Variable(), Variable(), Variable(), Variable()};
  }
};

class SoftTopk : public PoolingOperator {
 public:
  explicit SoftTopk(const Options& options)
      : temperature_(options.real("temperature")),
        iterations_(options.integer("iterations")),
        newton_steps_(options.integer("newton_steps")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto weights = SoftTopkFunction::apply(clean_scores(scores, lengths).to(at::kDouble), k, lengths, temperature_,
                                                 iterations_, newton_steps_, scores.scalar_type());
    return mix_rows(x, scores, weights, lengths);
  }
  std::string backend(const at::Device& device) const override { return soft_topk_backend(device); }

 private:
  double temperature_;
  std::int64_t iterations_, newton_steps_;
};

/// The paper's problem as it stands: squared costs to the anchors, potentials of rows and targets both, annealed from high
/// temperature, until row and column sums hold. Its gradient is that of one Newton step from the solution, which is exact
/// there.
class SoftTopkReference : public PoolingOperator {
 public:
  explicit SoftTopkReference(const Options& options) : temperature_(options.real("temperature")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return mix_by_rows(x, scores, k, lengths, [&](const at::Tensor& row, std::int64_t outputs, std::int64_t) {
      const auto n = row.size(0);
      auto anchors = at::arange(k, k - outputs, -1, row.options());
      auto mass = at::ones({n + outputs}, row.options());
      if (n > k) {
        anchors = at::constant_pad_nd(anchors, {0, 1});
        mass = at::constant_pad_nd(mass, {0, 1}, static_cast<double>(n - k));
      }
      const auto levels = shortened(row).unsqueeze(1);
      auto cost = (levels - anchors).square();
      auto potentials = solve(cost.detach(), mass);
      // A cost that is constant along a row moves no plan: count each row's from its likeliest anchor, to save digits.
      const auto own = anchors.index_select(0, coupling(potentials, cost, 2 * temperature_).argmax(1)).unsqueeze(1);
      cost = cost - (levels - own).square();
      potentials.narrow(0, 0, n).sub_((levels - own).square().squeeze(1).detach());
      const auto plan = coupling(potentials + newton(cost, mass, potentials, 2 * temperature_), cost, 2 * temperature_);
      return plan.t().narrow(0, 0, outputs);
    });
  }

 private:
  /// Scores without what is wide in their gaps, moved by constants.
  at::Tensor shortened(const at::Tensor& scores) const {
    const auto order = scores.detach().argsort(/*stable=*/true, 0, /*descending=*/true);
    const auto sorted = scores.detach().index_select(0, order).to(at::kCPU);
    const double* score = sorted.const_data_ptr<double>();
    double moved = -score[0];
    std::vector<double> shifts = {moved};
    for (std::int64_t i = 1; i < scores.size(0); ++i) {
      moved += std::max(0.0, score[i - 1] - score[i] - parting_gap * temperature_);
      shifts.push_back(moved);
    }
    const auto shift = at::tensor(shifts, at::kDouble).to(scores.device());
    return scores + at::empty_like(shift).scatter_(0, order, shift);
  }

  static at::Tensor coupling(const at::Tensor& potentials, const at::Tensor& cost, double epsilon) {
    const auto n = cost.size(0);
    const auto f = potentials.narrow(0, 0, n).unsqueeze(1);
    // In place, since at long inputs fresh memory costs more than the arithmetic.
    return (f + potentials.narrow(0, n, cost.size(1))).sub_(cost).div_(epsilon).exp_();
  }

  /// One Newton step of the potentials on the full dual (rows, then targets). The rows' block is diagonal: they are
  /// eliminated, which leaves the targets by what they share, whose sums over the others are the diagonal.
  static at::Tensor newton(const at::Tensor& cost, const at::Tensor& mass, const at::Tensor& potentials, double epsilon) {
    const auto plan = coupling(potentials, cost, epsilon);
    const auto n = plan.size(0), targets = plan.size(1);
    const auto rows_lack = mass.narrow(0, 0, n) - plan.sum(1), targets_lack = mass.narrow(0, n, targets) - plan.sum(0);
    const auto fixed = plan.detach();
    const auto row_sums = fixed.sum(1);
    auto shared = fixed.t().mm(fixed / row_sums.unsqueeze(1));
    shared.diagonal().zero_();
    const auto system = (shared.sum(1) + ridge).diag() - shared + 1.0 / static_cast<double>(targets);
    const auto of_targets = at::linalg_solve(system, targets_lack - fixed.t().mv(rows_lack / row_sums));
    const auto of_rows = (rows_lack - fixed.mv(of_targets)) / row_sums;
    return epsilon * at::cat({of_rows, of_targets});
  }

  /// The most that a step moves any logarithm of the plan.
  static double reach_of(const at::Tensor& step, std::int64_t n, double epsilon) {
    const auto rows = step.narrow(0, 0, n), targets = step.narrow(0, n, step.size(0) - n);
    return std::max((rows.max() + targets.max()).abs().item<double>(), (rows.min() + targets.min()).abs().item<double>()) /
           epsilon;
  }

  /// Annealed: at each temperature Sinkhorn's update of both sides, then damped Newton steps until the plan is near; at the
  /// last one until another step squares what is left to rounding.
  at::Tensor solve(const at::Tensor& cost, const at::Tensor& mass) const {
    constexpr int most_steps = 100;
    const auto n = cost.size(0);
    const double last = 2 * temperature_;
    auto potentials = at::zeros_like(mass);
    const auto f = potentials.narrow(0, 0, n);
    const auto g = potentials.narrow(0, n, cost.size(1));
    for (double epsilon = std::max(16.0, last);; epsilon = std::max(epsilon / 4, last)) {
      g.copy_(epsilon * (mass.narrow(0, n, g.size(0)).log() - (f.unsqueeze(1) - cost).div_(epsilon).logsumexp(0)));
      f.copy_(-epsilon * (g - cost).div_(epsilon).logsumexp(1));
      const double near = epsilon > last ? 0.5 : 1e-6;
      double reach = 1;
      for (int i = 0; i < most_steps && !(reach < near); ++i) {
        const auto step = newton(cost, mass, potentials, epsilon);
        reach = reach_of(step, n, epsilon);
        potentials.add_(step, reach > 1e-9 ? std::log1p(reach) / reach : 1);
      }
      if (epsilon <= last) return potentials;
    }
  }

  double temperature_;
};

Cost soft_topk_cost(const PoolingShape& shape, const Options& options) {
  const auto batch = static_cast<double>(shape.batch);
  const auto targets = static_cast<double>(shape.pooled_length + 1);
  const double couplings = 2 * batch * static_cast<double>(shape.length) * targets * targets;
  auto cost = mixture_cost(shape, /*kept_weights=*/1);
  cost.flops += static_cast<double>(options.integer("newton_steps")) * couplings;
  cost.backward_flops += couplings;
  cost.activation_bytes += batch * (static_cast<double>(shape.length) + targets) * sizeof(double);
  return cost;
}

const RegisterPooling registration({
    {.name = "soft_topk",
     .description = "sorted SOFT top-k: entropic optimal transport of the rows to k ranks and the rest, implicit backward",
     .source =
         "arXiv 2002.06504, sorted SOFT top-k operator: entropic optimal transport, squared cost, anchors k, ..., 1, 0",
     .options = {{.name = "temperature",
                  .type = OptionType::real,
                  .fallback = 0.01,
                  .meaning = "half the entropic epsilon at unit distance between anchors: two rows whose scores differ by "
                             "it swap neighbouring ranks at odds of 1 : e",
                  .minimum = 1e-6,
                  .maximum = 1e4},
                 {.name = "iterations",
                  .type = OptionType::integer,
                  .fallback = 10,
                  .meaning = "Sinkhorn steps, from the exact potentials of temperature 0",
                  .minimum = 0,
                  .maximum = 100000},
                 {.name = "newton_steps",
                  .type = OptionType::integer,
                  .fallback = 8,
                  .meaning = "damped Newton steps after them; the backward pass takes the plan for converged",
                  .minimum = 0,
                  .maximum = 1000}}},
    [](const Options& options) { return std::make_shared<SoftTopk>(options); },
    [](const Options& options) { return std::make_shared<SoftTopkReference>(options); },
    soft_topk_cost,
    /*distinct_rows=*/false,
    /*sharp=*/{{"temperature", 1e-4}},
});

}  // namespace
}  // namespace transpool
