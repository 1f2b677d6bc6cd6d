#include "models/pooling_layer.h"
#include "runners/measure/device.h"
#include "runners/measure/level.h"
#include "runners/measure/operator_inputs.h"
#include "runners/measure/operator_pass.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

namespace transpool {
namespace {

PoolingShape shape_of(const Options& values) {
  return {values.integer("batch"), values.integer("source_length"), values.integer("width"), values.integer("pooled_length"),
          dtype_from_name(values.text("dtype"))};
}

PoolingLayer layer_of(const Cell& cell, at::ScalarType dtype) {
  const auto& values = cell.values;
  PoolingLayer layer(values.integer("width"), values.raw("scorer"), values.raw("pooling"),
                     values.text("fused_pooling") == "auto");
  layer->to(device_from_name(cell.device), dtype);
  return layer;
}

/// A scorer and a pooling operator on random rows; rows and parameters have one dtype.
struct LayerPass {
  PoolingLayer layer;
  PoolingShape shape;
  std::string part, lengths_kind;
  at::Device device;
  bool backward;
  at::Tensor x = {}, scores = {}, cotangent = {}, score_cotangent = {};
  std::optional<at::Tensor> lengths = {};

  void draw() {
    const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
    x = at::randn({shape.batch, shape.length, shape.width}, options).to(shape.dtype).set_requires_grad(backward);
    cotangent = at::randn({shape.batch, shape.pooled_length, shape.width}, options).to(shape.dtype);
    score_cotangent = at::randn({shape.batch, shape.length}, options);
    lengths = draw_lengths(lengths_kind, shape.batch, shape.length, device);
    const at::NoGradGuard constant;
    scores = layer->scorer().forward({x, lengths}).detach().set_requires_grad(backward);
  }

  /// What the part gives: its values (or scores), of the layer also the scores that it pooled by; then the gradients of x,
  /// and of the scorer's parameters in a row or of the scores that the operator was given.
  std::vector<at::Tensor> run() {
    const at::AutoGradMode mode(backward);
    if (part == "scorer")
      return with_gradients({layer->scorer().forward({x, lengths})}, x, layer->parameters(), score_cotangent);
    if (part == "pooling")
      return with_gradients({layer->pooling().forward(x, scores, shape.pooled_length, lengths).values}, x, {scores},
                            cotangent);
    const auto found = layer->forward({x, lengths}, shape.pooled_length);
    return with_gradients({found.pooled.values, found.scores}, x, layer->parameters(), cotangent);
  }

  /// The same in float64 by the scorer's own function and the operator's reference. So that no rounding of scores decides
  /// who meets whom, the operator is given the scores `pooled_by`, with the gradient of the reference's.
  std::vector<at::Tensor> reference(PoolingLayer exact, const PoolingOperator& pooling, const at::Tensor& pooled_by) {
    const at::AutoGradMode mode(backward);
    const auto rows = x.detach().to(at::kDouble).set_requires_grad(backward);
    const auto pool = [&](const at::Tensor& s) { return pooling.forward(rows, s, shape.pooled_length, lengths).values; };
    if (part == "pooling") {
      const auto given = scores.detach().to(at::kDouble).set_requires_grad(backward);
      return with_gradients({pool(given)}, rows, {given}, cotangent.to(at::kDouble));
    }
    const auto own = exact->scorer().forward({rows, lengths});
    if (part == "scorer") return with_gradients({own}, rows, exact->parameters(), score_cotangent);
    const auto pinned = own.to(at::kDouble) + (pooled_by.to(at::kDouble) - own).detach();
    return with_gradients({pool(pinned), own}, rows, exact->parameters(), cotangent.to(at::kDouble));
  }

 private:
  /// `results`, and the gradients of <results[0], cotangent>.
  std::vector<at::Tensor> with_gradients(std::vector<at::Tensor> results, const at::Tensor& rows,
                                         const std::vector<at::Tensor>& others, const at::Tensor& towards) const {
    std::vector<at::Tensor> inputs = {rows};
    inputs.insert(inputs.end(), others.begin(), others.end());
    std::vector<at::Tensor> all(inputs.size());
    if (backward && results[0].requires_grad())
      all = torch::autograd::grad({results[0]}, inputs, {towards}, std::nullopt, false, /*allow_unused=*/true);
    for (auto& result : results) result = result.detach();
    if (!backward) return results;
    for (std::size_t i = 0; i < all.size(); ++i) results.push_back(all[i].defined() ? all[i] : at::zeros_like(inputs[i]));
    return results;
  }
};

/// "" where the pass agrees with float64 on its current inputs, else what differs and by how much.
std::string disagreement(const Cell& cell, LayerPass& pass) {
  const auto selection = pooling_registry().select(cell.values.raw("pooling"));
  auto exact = layer_of(cell, at::kDouble);
  const at::NoGradGuard constant;
  const auto from = pass.layer->named_parameters();
  for (auto& parameter : exact->named_parameters()) parameter.value().copy_(from[parameter.key()]);
  const auto seed = draw_seed();
  at::manual_seed(seed);
  auto ours = pass.run();
  at::manual_seed(seed);
  const bool whole = pass.part == "layer";
  auto theirs = pass.reference(exact, *selection.variant->reference(selection.options), whole ? ours[1] : at::Tensor());
  at::manual_seed(seed + 1);  // what is drawn next must not repeat the noise
  std::vector<std::string> names = {pass.part == "scorer" ? "scores" : "values"};
  if (whole) names.push_back("scores");
  if (pass.backward) names.push_back("gradient of x");
  const auto first = names.size();
  if (ours.size() > first) {
    names.push_back(pass.part == "pooling" ? "gradient of the scores" : "gradient of the scorer");
    for (auto* all : {&ours, &theirs}) {
      std::vector<at::Tensor> flat;
      for (std::size_t i = first; i < all->size(); ++i) flat.push_back((*all)[i].flatten().to(at::kDouble));
      all->resize(first);
      all->push_back(at::cat(flat));
    }
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == "scores" && pass.lengths)
      for (auto* all : {&ours, &theirs})
        (*all)[i] = (*all)[i].masked_fill(valid_positions(*pass.lengths, pass.shape.length).logical_not(), 0);
    const double error = relative_error(ours[i], theirs[i]);
    const double allowed = std::max(allowed_error(pass.shape.dtype), 1e-4);  // scores are float32 whatever the rows are
    if (error > allowed)
      return fmt::format("{}: relative error {:.3g} against the reference; allowed: {:.0e}", names[i], error, allowed);
  }
  return "";
}

Cost cost_of(const Options& values) {
  const auto shape = shape_of(values);
  const auto scorer = scorer_registry().select(values.raw("scorer"));
  const auto pooling = pooling_registry().select(values.raw("pooling"));
  const auto part = values.text("part");
  Cost cost;
  if (part != "pooling") {
    cost = scorer.variant->cost({shape.batch, shape.length, shape.width}, scorer.options);
    const bool learns = part == "scorer" || pooling.variant->make(pooling.options)->passes_score_gradient();
    if (!learns) cost.backward_flops = 0;
  }
  if (part != "scorer") cost += pooling.variant->cost(shape, pooling.options);
  if (values.text("pass") == "forward") cost.backward_flops = cost.activation_bytes = 0;
  return cost;
}

/// Rows once a direction, what comes of them, and its gradients once.
double least_bytes(const LayerPass& pass) {
  const auto results = pass.part == "scorer" ? pass.scores.nbytes() : pass.cotangent.nbytes();
  const auto forward = static_cast<double>(pass.x.nbytes() + results);
  return pass.backward ? 2 * forward + static_cast<double>(pass.x.nbytes()) : forward;
}

void check(const Cell& cell, const Where& where) {
  const auto shape = shape_of(cell.values);
  if (shape.pooled_length > shape.length)
    where.fail(fmt::format("pooled_length: {} is out of range; allowed: 1 to source_length = {}", shape.pooled_length,
                           shape.length));
  const auto& variant = *pooling_registry().select(cell.values.raw("pooling"), where).variant;
  scorer_registry().select(cell.values.raw("scorer"), where);
  check_pooling_support(variant, shape, cell.device);
  if (!variant.capabilities.differentiable && cell.values.text("pass") != "forward")
    throw Unsupported(
        fmt::format("pooling operator \"{}\" does not support the pass {}", variant.name, cell.values.text("pass")));
}

void measure(const Cell& cell, Record& record) {
  at::manual_seed(static_cast<std::uint64_t>(cell.seed));
  const auto& values = cell.values;
  const auto shape = shape_of(values);
  const auto device = device_from_name(cell.device);
  const auto part = values.text("part");
  const auto pass = std::make_shared<LayerPass>(LayerPass{layer_of(cell, shape.dtype), shape, part, values.text("lengths"),
                                                          device, values.text("pass") == "forward+backward"});
  pass->draw();
  record.details["backend"] =
      pooling_layer_backends(values.raw("scorer"), values.raw("pooling"),
                             part == "layer" && values.text("fused_pooling") == "auto", device, shape, shape.dtype);
  Workload workload;
  workload.what = fmt::format("one {} pass of {}", values.text("pass"),
                              part == "layer"     ? "the pooling layer"
                              : part == "pooling" ? "the layer's pooling operator"
                                                  : "the layer's scorer");
  workload.run = [pass] { pass->run(); };
  workload.results = [pass] { return pass->run(); };
  workload.redraw = [pass] { pass->draw(); };
  workload.check = [pass, cell] { return disagreement(cell, *pass); };
  workload.cost = cost_of(values);
  workload.backward = pass->backward;
  workload.dtype = shape.dtype;
  workload.bytes = [pass](const Record&) { return least_bytes(*pass); };
  measure_workload(cell, workload, record);
}

const RegisterLevel registration({"pooling_layer",
                                  "a scorer and the pooling operator behind it on random rows, checked against float64",
                                  check, [](const Cell& cell) { return cost_of(cell.values); }, measure});

}  // namespace
}  // namespace transpool
