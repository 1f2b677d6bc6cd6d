#include "runners/measure/selection.h"

#include "operators/pooling/selection.h"
#include "runners/measure/operator_inputs.h"
#include "runners/rouge/bootstrap.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <numbers>

namespace transpool {
namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();
constexpr double useful = 1e-3;                                 ///< of the largest gradient of the batch row
constexpr std::int64_t block_elements = std::int64_t{1} << 24;  ///< of x in one call for weights

/// Mean over the real outputs or hard rows (those with a position), (B,).
at::Tensor mean_over(const at::Tensor& per_row, const at::Tensor& positions) {
  const auto real = positions >= 0;
  return per_row.masked_fill(real.logical_not(), 0).sum(1) / real.sum(1).clamp_min(1);
}

/// One metric while it is being measured: a value for each batch row of each draw.
struct Metric {
  std::string name, unit, meaning;
  bool higher_is_better = true;
  std::vector<double> rows = {};
  std::vector<double> draws = {};  ///< means

  void add(const at::Tensor& per_batch_row) {
    const auto host = per_batch_row.to(at::kCPU, at::kDouble).contiguous();
    double sum = 0;
    for (std::int64_t b = 0; b < host.numel(); ++b) {
      rows.push_back(host.data_ptr<double>()[b]);
      sum += rows.back();
    }
    draws.push_back(sum / static_cast<double>(host.numel()));
  }
};

void summarize(const Metric& metric, std::uint64_t seed, Record& record) {
  if (metric.rows.empty()) return;
  const auto interval = bootstrap_mean(metric.rows, seed);
  Summary summary{
      .name = metric.name, .unit = metric.unit, .value = interval.value, .higher_is_better = metric.higher_is_better};
  summary.interval = {interval.low, interval.high};
  summary.samples = metric.draws;
  summary.statistic = "mean";
  summary.meaning = metric.meaning;
  record.summaries.push_back(summary);
}

/// Shares of each output's weight that lie on the hard rows, (B,), by pooling their indicator beside a column of ones.
at::Tensor mass_on_hard_rows(const PoolingPass& pass, const at::Tensor& hard, std::uint64_t noise_seed) {
  const auto n = pass.shape.length;
  auto indicator = at::zeros({hard.size(0), n + 1}, pass.scores.options().requires_grad(false));
  indicator.scatter_(1, at::where(hard < 0, n, hard), 1);
  indicator = indicator.narrow(1, 0, n);
  const auto x = at::stack({indicator, at::ones_like(indicator)}, 2);
  at::manual_seed(noise_seed);
  const auto pooled = pass.op->forward(x, pass.scores.detach(), pass.shape.pooled_length, pass.lengths);
  const auto all = pooled.values.select(2, 1);
  const auto share = at::where(all == 0, at::zeros_like(all), pooled.values.select(2, 0) / all);
  return mean_over(share, pooled.positions);
}

/// Batch rows whose whole weight matrix the work allowed for a draw pays for; 0 where not even one.
std::int64_t weighed_rows(const Cell& cell, const Selection<PoolingVariant>& selection, const PoolingShape& shape) {
  auto one = shape;
  one.batch = 1;
  one.width = shape.length;
  const double gflop = selection.variant->cost(one, selection.options).flops / 1e9;
  const double affordable = cell.values.real("selection.weight_gflop") / std::max(gflop, 1e-9);
  return std::min(shape.batch, static_cast<std::int64_t>(std::min(affordable, 1e9)));
}

at::Tensor mean_effective_rows(const PoolingPass& pass, std::int64_t rows, std::uint64_t noise_seed) {
  std::optional<at::Tensor> lengths;
  if (pass.lengths) lengths = pass.lengths->narrow(0, 0, rows);
  const auto scores = pass.scores.detach().narrow(0, 0, rows);
  const auto n = pass.shape.length;
  const auto block = std::clamp<std::int64_t>(block_elements / (rows * n), 1, n);
  const auto weights = weight_matrix(*pass.op, scores, pass.shape.pooled_length, lengths, block, noise_seed);
  const auto real = weights.abs().sum(2) > 0;
  return effective_rows(weights).masked_fill(real.logical_not(), 0).sum(1) / real.sum(1).clamp_min(1);
}

struct ForwardMetrics {
  Metric overlap, cosine, mass, effective_rows;
};

ForwardMetrics forward_metrics() {
  return {{"selection_overlap", "1", "share of the k highest-scored rows that lead an output"},
          {"selection_cosine", "1",
           "cosine of each of the k highest-scored rows with the output nearest to it, rows uniform on [-1, 1]"},
          {"selection_mass", "1", "share of the outputs' weight that lies on the k highest-scored rows"},
          {"selection_effective_rows", "1", "exp of the entropy of an output's weights: 1 is a copy of one row", false}};
}

void add_forward(const PoolingPass& pass, std::int64_t weighed, std::uint64_t noise_seed, ForwardMetrics& metrics) {
  const at::NoGradGuard no_gradient;
  const auto k = pass.shape.pooled_length;
  const auto hard = hard_rows(pass.scores, k, pass.lengths);
  const auto x = at::rand(pass.x.sizes(), pass.scores.options().requires_grad(false)) * 2 - 1;
  const auto pooled = pass.op->forward(x, pass.scores.detach(), k, pass.lengths);
  metrics.overlap.add(overlap(hard, pooled.positions, pass.shape.length));
  metrics.cosine.add(matched_cosine(x, pooled.values, hard));
  metrics.mass.add(mass_on_hard_rows(pass, hard, noise_seed));
  if (weighed > 0) metrics.effective_rows.add(mean_effective_rows(pass, weighed, noise_seed));
}

/// The score gradient of sum over outputs of <output, u>: what the smoothed objective is the hard form of, (B, n) float64.
at::Tensor score_gradient(const PoolingPass& pass, const at::Tensor& direction, std::uint64_t noise_seed) {
  const at::AutoGradMode mode(true);
  at::manual_seed(noise_seed);
  const auto s = pass.scores.detach().clone().set_requires_grad(true);
  const auto values = pass.op->forward(pass.x.detach(), s, pass.shape.pooled_length, pass.lengths).values;
  if (!values.requires_grad()) return at::zeros_like(s, at::kDouble);
  const auto cotangent = direction.to(values.scalar_type()).expand_as(values).contiguous();
  const auto gradient = torch::autograd::grad({values}, {s}, {cotangent}, std::nullopt, false, /*allow_unused=*/true)[0];
  return gradient.defined() ? gradient.to(at::kDouble) : at::zeros_like(s, at::kDouble);
}

/// Standard deviation of the valid scores of each batch row, (B, 1) float64.
at::Tensor score_deviation(const PoolingPass& pass) {
  const auto scores = bounded_scores(pass.scores.detach()).to(at::kDouble);
  const auto valid = pass.lengths ? valid_positions(*pass.lengths, scores.size(1)) : at::ones_like(scores, at::kBool);
  const auto count = valid.sum(1, true).clamp_min(1);
  const auto mean = scores.masked_fill(valid.logical_not(), 0).sum(1, true) / count;
  const auto squares = (scores - mean).square().masked_fill(valid.logical_not(), 0).sum(1, true) / count;
  return squares.sqrt().clamp_min(1e-12);
}

at::Tensor squared_norm(const at::Tensor& rows) { return rows.square().sum(1); }

struct GradientMetrics {
  Metric useful_share, cosine, bias, variance;
};

GradientMetrics gradient_metrics(double width) {
  const auto smoothed = fmt::format(
      "gradient of the hard objective smoothed by Gaussian noise, {:g} standard deviations of the scores wide", width);
  return {
      {"gradient_useful", "1", fmt::format("share of valid rows whose score gradient is over {:g} of the largest", useful)},
      {"gradient_cosine", "1", "cosine of the (mean) score gradient with the " + smoothed},
      {"gradient_bias", "1", "distance of the mean score gradient, scaled at best, from the " + smoothed + ", over its norm",
       false},
      {"gradient_variance", "1", "variance of the score gradient over the operator's noise, over its mean's squared norm",
       false}};
}

/// Mean of the score gradient over the operator's own noise, and the summed variance of one draw; one draw is all there is
/// where nothing is random.
std::pair<at::Tensor, at::Tensor> gradient_moments(const PoolingPass& pass, const at::Tensor& direction,
                                                   std::int64_t repeats, std::uint64_t noise_seed) {
  auto mean = score_gradient(pass, direction, noise_seed);
  auto spread = at::zeros_like(mean);
  for (std::int64_t r = 1; r < repeats; ++r) {
    const auto fresh = score_gradient(pass, direction, noise_seed + static_cast<std::uint64_t>(r)) - mean;
    mean = mean + fresh / static_cast<double>(r + 1);
    spread = spread + fresh.square() * (static_cast<double>(r) / static_cast<double>(r + 1));
  }
  return {mean, spread.sum(1) / static_cast<double>(std::max<std::int64_t>(1, repeats - 1))};
}

void add_gradient(const Cell& cell, const PoolingPass& pass, bool stochastic, std::uint64_t noise_seed,
                  GradientMetrics& metrics) {
  const auto draws = cell.values.integer("selection.noise_draws");
  const auto direction = at::randn({pass.shape.batch, 1, pass.shape.width}, pass.x.options().dtype(at::kFloat));
  const auto utility = at::matmul(pass.x.detach().to(at::kDouble), direction.to(at::kDouble).transpose(1, 2)).squeeze(2);
  const auto repeats = stochastic ? draws : 1;
  const auto [mean, variance] = gradient_moments(pass, direction, repeats, noise_seed);
  const auto n = pass.shape.length;
  const auto size = mean.abs();
  const auto counted = (size > useful * size.amax(1, true)).sum(1).to(at::kDouble);
  metrics.useful_share.add(counted / (pass.lengths ? pass.lengths->to(at::kDouble) : at::full_like(counted, n)));
  if (size.max().item<double>() == 0 || pass.shape.pooled_length == n) return;
  const auto width = cell.values.real("selection.smoothing") * score_deviation(pass);
  const auto target = smoothed_gradient(pass.scores.detach(), utility, pass.shape.pooled_length, pass.lengths, width, draws);
  const auto product = (mean * target).sum(1);
  const auto target_norm = squared_norm(target).clamp_min(1e-300);
  metrics.cosine.add(product / (squared_norm(mean).clamp_min(1e-300) * target_norm).sqrt());
  if (!stochastic) return;
  // Operators scale their gradients as they like and an optimiser undoes it: the bias is what no scale removes. The noise
  // that is left in the mean is no bias.
  const auto own = (squared_norm(mean) - variance / static_cast<double>(repeats)).clamp_min(1e-300);
  metrics.bias.add((1 - product.clamp_min(0).square() / (own * target_norm)).clamp_min(0).sqrt());
  metrics.variance.add(variance / own);
}

}  // namespace

at::Tensor hard_rows(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths) {
  return select_top_rows(scores, k, lengths, /*keep_order=*/false);
}

at::Tensor overlap(const at::Tensor& hard, const at::Tensor& positions, std::int64_t n) {
  auto chosen = at::zeros({positions.size(0), n + 1}, positions.options().dtype(at::kDouble));
  chosen.scatter_(1, at::where(positions < 0, n, positions), 1);
  return mean_over(chosen.gather(1, hard.clamp_min(0)), hard);
}

at::Tensor matched_cosine(const at::Tensor& x, const at::Tensor& values, const at::Tensor& hard) {
  const auto unit = [](const at::Tensor& rows) { return rows / rows.norm(2, {1}, true).clamp_min(1e-8); };
  std::vector<at::Tensor> best;
  // One batch row at a time: all pairs of all rows at once would be B * k * k.
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    const auto targets = unit(x[b].index_select(0, hard[b].clamp_min(0)).to(at::kDouble));
    best.push_back(at::matmul(targets, unit(values[b].to(at::kDouble)).t()).amax(1));
  }
  return mean_over(at::stack(best), hard);
}

at::Tensor weight_matrix(const PoolingOperator& op, const at::Tensor& scores, std::int64_t k,
                         const std::optional<at::Tensor>& lengths, std::int64_t block, std::uint64_t noise_seed) {
  const at::NoGradGuard no_gradient;
  const auto n = scores.size(1);
  std::vector<at::Tensor> blocks;
  for (std::int64_t first = 0; first < n; first += block) {
    const auto columns = std::min(block, n - first);
    auto x = at::zeros({n, columns}, scores.options().requires_grad(false));
    x.narrow(0, first, columns).fill_diagonal_(1);
    at::manual_seed(noise_seed);
    blocks.push_back(op.forward(x.expand({scores.size(0), n, columns}).contiguous(), scores, k, lengths).values);
  }
  return at::cat(blocks, 2);
}

at::Tensor effective_rows(const at::Tensor& weights) {
  const auto size = weights.abs();
  const auto share = size / size.sum(2, true).clamp_min(1e-30);
  return at::xlogy(share, share).sum(2).neg().exp();
}

at::Tensor smoothed_gradient(const at::Tensor& scores, const at::Tensor& utility, std::int64_t k,
                             const std::optional<at::Tensor>& lengths, const at::Tensor& width, std::int64_t draws) {
  const auto n = scores.size(1);
  const auto s = bounded_scores(scores).to(at::kDouble);
  auto sum = at::zeros_like(s);
  if (k >= n) return sum;
  const auto valid = lengths ? valid_positions(*lengths, n) : at::ones_like(s, at::kBool);
  for (std::int64_t draw = 0; draw < draws; ++draw) {
    const auto noisy = (s + width * at::randn_like(s)).masked_fill(valid.logical_not(), lowest);
    const auto [top, rows] = noisy.topk(k + 1, 1);
    const auto selected = noisy >= top.narrow(1, k - 1, 1);
    // Without row i the k-th highest of the others is the row that i keeps out, or the last row that keeps i out.
    const auto threshold = at::where(selected, top.narrow(1, k, 1), top.narrow(1, k - 1, 1));
    const auto rival = at::where(selected, rows.narrow(1, k, 1), rows.narrow(1, k - 1, 1));
    const auto density = (-((threshold - s) / width).square() / 2).exp() / (width * std::sqrt(2 * std::numbers::pi));
    sum += (density * (utility - utility.gather(1, rival))).masked_fill(valid.logical_not(), 0);
  }
  return sum / static_cast<double>(draws);
}

void measure_selection(const Cell& cell, const Selection<PoolingVariant>& selection, PoolingPass& pass, Record& record) {
  at::manual_seed(static_cast<std::uint64_t>(cell.seed));  // timing before this drew as often as the clock let it
  const auto weighed = weighed_rows(cell, selection, pass.shape);
  auto forward = forward_metrics();
  auto gradient = gradient_metrics(cell.values.real("selection.smoothing"));
  for (std::int64_t draw = 0; draw < cell.values.integer("selection.draws"); ++draw) {
    pass.draw();
    const auto noise_seed = draw_seed();
    add_forward(pass, weighed, noise_seed, forward);
    if (pass.backward) add_gradient(cell, pass, selection.variant->capabilities.stochastic, noise_seed, gradient);
    at::manual_seed(noise_seed + 1000003);  // the next inputs must not repeat the noise
  }
  for (const auto* metric : {&forward.overlap, &forward.cosine, &forward.mass, &forward.effective_rows,
                             &gradient.useful_share, &gradient.cosine, &gradient.bias, &gradient.variance})
    summarize(*metric, static_cast<std::uint64_t>(cell.seed), record);
  record.details["selection"] = {{"draws", cell.values.integer("selection.draws")},
                                 {"batch_rows_weighed", weighed},
                                 {"smoothing", cell.values.real("selection.smoothing")}};
}

}  // namespace transpool
