#include "runners/measure/operator_pass.h"

#include "runners/measure/operator_inputs.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// Gradients of <output, cotangent>; zeros where an input is not reached.
std::vector<at::Tensor> gradients(const at::Tensor& output, const std::vector<at::Tensor>& inputs,
                                  const at::Tensor& cotangent) {
  std::vector<at::Tensor> all(inputs.size());
  if (output.requires_grad())
    all = torch::autograd::grad({output}, inputs, {cotangent}, std::nullopt, false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (!all[i].defined()) all[i] = at::zeros_like(inputs[i]);
  return all;
}

/// One pass: what the operator gives, and the gradients.
std::pair<Pooled, std::vector<at::Tensor>> run_pass(const PoolingPass& pass) {
  const at::AutoGradMode mode(pass.backward);
  auto pooled = pass.op->forward(pass.x, pass.scores, pass.shape.pooled_length, pass.lengths);
  std::vector<at::Tensor> gradients;
  if (pass.backward && pooled.values.requires_grad())
    gradients = torch::autograd::grad({pooled.values}, {pass.x, pass.scores}, {pass.cotangent}, std::nullopt, false,
                                      /*allow_unused=*/true);
  return {std::move(pooled), std::move(gradients)};
}

std::pair<at::Tensor, std::vector<at::Tensor>> run_pass(const AttentionPass& pass) {
  const at::AutoGradMode mode(pass.backward);
  auto out = pass.op->forward(pass.q, pass.k, pass.v, pass.mask);
  std::vector<at::Tensor> gradients;
  if (pass.backward)
    gradients = torch::autograd::grad({out}, {pass.q, pass.k, pass.v}, {pass.cotangent}, std::nullopt, false,
                                      /*allow_unused=*/true);
  return {std::move(out), std::move(gradients)};
}

double bytes_of(const at::Tensor& tensor) { return static_cast<double>(tensor.nbytes()); }

}  // namespace

void PoolingPass::draw() {
  const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
  x = at::randn({shape.batch, shape.length, shape.width}, options).to(shape.dtype).set_requires_grad(backward);
  const auto score_dtype = shape.dtype == at::kDouble ? at::kDouble : at::kFloat;
  scores = draw_scores(scores_kind, shape.batch, shape.length, options).to(score_dtype).detach().set_requires_grad(backward);
  lengths = draw_lengths(lengths_kind, shape.batch, shape.length, device);
  cotangent = at::randn({shape.batch, shape.pooled_length, shape.width}, options).to(shape.dtype);
}

void PoolingPass::run() const { run_pass(*this); }

std::vector<at::Tensor> PoolingPass::outputs() const {
  auto [pooled, all] = run_pass(*this);
  // Detached, so that holding the results does not hold what was kept for the backward pass.
  for (const auto& result : {pooled.values, pooled.scores, pooled.positions}) all.push_back(result.detach());
  return all;
}

double PoolingPass::least_bytes(Cost cost, double rows_read) const {
  cost.bytes_read -= (1 - rows_read) * bytes_of(x);
  const double forward = cost.bytes_read + cost.bytes_written;
  if (!backward) return forward;
  const bool learns = op->passes_score_gradient();
  return forward + bytes_of(cotangent) + bytes_of(x) + (learns ? bytes_of(scores) + cost.bytes_read : 0);
}

std::vector<at::Tensor> PoolingPass::results(const PoolingOperator& which, at::ScalarType dtype,
                                             std::uint64_t noise_seed) const {
  const at::AutoGradMode mode(backward);
  at::manual_seed(noise_seed);
  const auto in = x.detach().to(dtype).set_requires_grad(backward);
  const auto score_dtype = dtype == at::kDouble ? at::kDouble : scores.scalar_type();
  const auto s = scores.detach().to(score_dtype).set_requires_grad(backward);
  const auto pooled = which.forward(in, s, shape.pooled_length, lengths);
  std::vector<at::Tensor> all = {pooled.values.detach()};
  if (backward)
    for (auto& gradient : gradients(pooled.values, {in, s}, cotangent.to(dtype))) all.push_back(gradient);
  return all;
}

const std::vector<std::string>& PoolingPass::result_names() {
  static const std::vector<std::string> names = {"values", "gradient of x", "gradient of the scores"};
  return names;
}

void AttentionPass::draw() { draw(draw_lengths(lengths_kind, shape.batch, shape.keys, device)); }

void AttentionPass::draw(const std::optional<at::Tensor>& lengths) {
  const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
  const auto one = [&](std::int64_t rows) {
    // The layout that projections give: (B, n, h, e) seen as (B, h, n, e).
    return at::randn({shape.batch, rows, shape.heads, shape.head_width}, options).to(shape.dtype).transpose(1, 2);
  };
  q = one(shape.queries).set_requires_grad(backward);
  k = one(shape.keys).set_requires_grad(backward);
  v = one(shape.keys).set_requires_grad(backward);
  cotangent = one(shape.queries);
  mask = {lengths, shape.causal};
  valid = at::Tensor();
  if (!lengths || shape.queries != shape.keys) return;
  valid = valid_positions(*lengths, shape.queries).unsqueeze(1).unsqueeze(3);
  cotangent = cotangent.masked_fill(valid.logical_not(), 0);
}

void AttentionPass::run() const { run_pass(*this); }

std::vector<at::Tensor> AttentionPass::outputs() const {
  auto [out, all] = run_pass(*this);
  all.push_back(out.detach());
  return all;
}

double AttentionPass::least_bytes(const Cost& cost) const {
  const double forward = cost.bytes_read + cost.bytes_written;
  const double inputs = bytes_of(q) + bytes_of(k) + bytes_of(v);
  return backward ? forward + 2 * inputs + bytes_of(cotangent) : forward;
}

std::vector<at::Tensor> AttentionPass::results(const AttentionOperator& which, at::ScalarType dtype,
                                               std::uint64_t noise_seed) const {
  const at::AutoGradMode mode(backward);
  at::manual_seed(noise_seed);
  std::vector<at::Tensor> in;
  for (const auto& t : {q, k, v}) in.push_back(t.detach().to(dtype).set_requires_grad(backward));
  const auto out = which.forward(in[0], in[1], in[2], mask);
  const auto shown = out.detach();
  std::vector<at::Tensor> all = {valid.defined() ? shown.masked_fill(valid.logical_not(), 0) : shown};
  if (backward)
    for (auto& gradient : gradients(out, in, cotangent.to(dtype))) all.push_back(gradient);
  return all;
}

const std::vector<std::string>& AttentionPass::result_names() {
  static const std::vector<std::string> names = {"output", "gradient of q", "gradient of k", "gradient of v"};
  return names;
}

double relative_error(const at::Tensor& a, const at::Tensor& b, double floor) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (a.sizes() != b.sizes()) return infinity;
  const auto difference = (a.to(at::kDouble) - b.to(at::kDouble)).norm().item<double>();
  const auto scale = b.to(at::kDouble).norm().item<double>();
  const double least = std::max(floor * std::sqrt(static_cast<double>(b.numel())), 1e-30);
  const double error = difference / std::max(scale, least);
  return std::isfinite(error) ? error : infinity;
}

double allowed_error(at::ScalarType dtype) {
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  return dtype == at::kDouble ? 1e-9 : half ? 1e-2 : 1e-4;
}

template <class Pass, class Reference>
std::string disagreement(const Pass& pass, const Reference& reference) {
  const auto seed = draw_seed();
  const auto ours = pass.results(*pass.op, pass.shape.dtype, seed);
  const auto theirs = pass.results(reference, at::kDouble, seed);
  at::manual_seed(seed + 1);  // what is drawn next must not repeat the noise
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const double error = relative_error(ours[i], theirs[i]);
    // The scores' gradient has the scores' dtype, but no more digits than the rows that it was computed from.
    const double allowed = allowed_error(pass.shape.dtype);
    if (error > allowed)
      return fmt::format("{}: relative error {:.3g} against the reference; allowed: {:.0e}", Pass::result_names()[i], error,
                         allowed);
  }
  return "";
}

template std::string disagreement(const PoolingPass&, const PoolingOperator&);
template std::string disagreement(const AttentionPass&, const AttentionOperator&);

}  // namespace transpool
