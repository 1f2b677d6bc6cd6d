#include "runners/measure/device.h"
#include "runners/measure/level.h"
#include "runners/measure/operator_pass.h"
#include "runners/measure/selection.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

namespace transpool {
namespace {

PoolingShape pooling_shape(const Options& values) {
  return {values.integer("batch"), values.integer("source_length"), values.integer("width"), values.integer("pooled_length"),
          dtype_from_name(values.text("dtype"))};
}

AttentionShape attention_shape(const Options& values, const std::string& device) {
  const auto n = values.integer("source_length");
  const auto heads = values.integer("heads");
  return {values.integer("batch"),
          heads,
          n,
          n,
          values.integer("width") / heads,
          values.flag("causal"),
          values.text("lengths") == "random",
          dtype_from_name(values.text("dtype")),
          device_from_name(device).type()};
}

bool asks_for_selection(const Cell& cell) {
  return std::find(cell.measure.begin(), cell.measure.end(), "selection") != cell.measure.end();
}

template <class Variant>
auto make_operator(const Registry<Variant>& registry, const Json& value) {
  const auto selection = registry.select(value);
  return selection.variant->make(selection.options);
}

/// Throws Unsupported where a backend is asked for and another one would run.
template <class Operator>
void check_backend(const Cell& cell, const Operator& op) {
  if (!cell.values.has("backend")) return;
  const auto found = op.backend(device_from_name(cell.device));
  const auto asked = cell.values.text("backend");
  if (found == asked) return;
  const auto kind = cell.values.text("operator");
  throw Unsupported(fmt::format("{} operator {} runs on backend \"{}\" on {}; asked for: \"{}\"", kind,
                                cell.values.raw(kind).at("name").dump(), found, cell.device, asked));
}

void check(const Cell& cell, const Where& where) {
  const auto& values = cell.values;
  if (values.text("operator") == "pooling") {
    const auto shape = pooling_shape(values);
    if (shape.pooled_length > shape.length)
      where.fail(fmt::format("pooled_length: {} is out of range; allowed: 1 to source_length = {}", shape.pooled_length,
                             shape.length));
    const auto& variant = *pooling_registry().select(values.raw("pooling"), where).variant;
    check_pooling_support(variant, shape, cell.device);
    if (values.has("backend")) check_backend(cell, *make_operator(pooling_registry(), values.raw("pooling")));
    if (!variant.capabilities.differentiable && values.text("pass") != "forward")
      throw Unsupported(
          fmt::format("pooling operator \"{}\" does not support the pass {}", variant.name, values.text("pass")));
    return;
  }
  if (asks_for_selection(cell)) where.fail("\"selection\" is measured of pooling operators only");
  if (values.integer("width") % values.integer("heads") != 0)
    where.fail(fmt::format("heads: {} does not divide width {}; allowed: a divisor of the width", values.integer("heads"),
                           values.integer("width")));
  check_attention_support(*attention_registry().select(values.raw("attention"), where).variant,
                          attention_shape(values, cell.device), cell.device);
  if (values.has("backend")) check_backend(cell, *make_operator(attention_registry(), values.raw("attention")));
}

/// A variant that skips rows reads less than it declares: its record says how much.
double least_bytes(const PoolingPass& pass, const Cost& cost, const Record& record) {
  return pass.least_bytes(cost, record.details.value("rows_read_share", 1.0));
}

double least_bytes(const AttentionPass& pass, const Cost& cost, const Record&) { return pass.least_bytes(cost); }

/// What both kinds end with: the pass as a workload, checked against the reference and measured.
template <class Pass, class Reference>
void measure_pass(const Cell& cell, const std::shared_ptr<Pass>& pass, const std::shared_ptr<Reference>& reference,
                  const Cost& cost, Record& record) {
  const auto kind = cell.values.text("operator");
  record.details["backend"] = {{kind, pass->op->backend(pass->device)}};
  check_backend(cell, *pass->op);
  Workload workload;
  workload.what = "one " + cell.values.text("pass") + " pass of the " + kind + " operator";
  workload.run = [pass] { pass->run(); };
  workload.results = [pass] { return pass->outputs(); };
  workload.redraw = [pass] { pass->draw(); };
  workload.check = [pass, reference] { return disagreement(*pass, *reference); };
  workload.cost = cost;
  workload.backward = pass->backward;
  workload.dtype = pass->shape.dtype;
  workload.bytes = [pass, cost](const Record& so_far) { return least_bytes(*pass, cost, so_far); };
  measure_workload(cell, workload, record);
}

/// Variants that skip rows of x say how many they read of these.
void note_rows_read(const PoolingPass& pass, Record& record) {
  const auto share = pass.op->rows_read(pass.x, pass.scores, pass.shape.pooled_length, pass.lengths);
  if (!share) return;
  record.details["rows_read_share"] = *share;
  record.summaries.push_back({.name = "rows_read",
                              .unit = "share",
                              .value = *share,
                              .higher_is_better = false,
                              .meaning = "part of the valid rows of x that the forward pass reads"});
}

/// What both kinds begin with; the inputs are not drawn yet.
template <class Pass, class Variant, class Shape>
std::shared_ptr<Pass> pass_of(const Cell& cell, const Selection<Variant>& selection, const Shape& shape) {
  auto pass = std::make_shared<Pass>();
  pass->op = selection.variant->make(selection.options);
  pass->shape = shape;
  pass->lengths_kind = cell.values.text("lengths");
  pass->device = device_from_name(cell.device);
  pass->backward = cell.values.text("pass") == "forward+backward";
  return pass;
}

void measure_pooling(const Cell& cell, Record& record) {
  const auto selection = pooling_registry().select(cell.values.raw("pooling"));
  const auto pass = pass_of<PoolingPass>(cell, selection, pooling_shape(cell.values));
  pass->scores_kind = cell.values.text("scores");
  pass->draw();
  note_rows_read(*pass, record);
  measure_pass(cell, pass, selection.variant->reference(selection.options),
               selection.variant->cost(pass->shape, selection.options), record);
  if (asks_for_selection(cell)) measure_selection(cell, selection, *pass, record);
}

void measure_attention(const Cell& cell, Record& record) {
  const auto selection = attention_registry().select(cell.values.raw("attention"));
  const auto pass = pass_of<AttentionPass>(cell, selection, attention_shape(cell.values, cell.device));
  pass->draw();
  measure_pass(cell, pass, selection.variant->reference(selection.options),
               selection.variant->cost(pass->shape, selection.options), record);
}

Cost estimate(const Cell& cell) {
  const auto& values = cell.values;
  const bool pooling = values.text("operator") == "pooling";
  Cost cost;
  if (pooling) {
    const auto selection = pooling_registry().select(values.raw("pooling"));
    cost = selection.variant->cost(pooling_shape(values), selection.options);
  } else {
    const auto selection = attention_registry().select(values.raw("attention"));
    cost = selection.variant->cost(attention_shape(values, cell.device), selection.options);
  }
  if (values.text("pass") == "forward") cost.backward_flops = cost.activation_bytes = 0;
  return cost;
}

const RegisterLevel registration({"operator",
                                  "one pooling or attention operator on random inputs, checked against its reference", check,
                                  estimate, [](const Cell& cell, Record& record) {
                                    at::manual_seed(static_cast<std::uint64_t>(cell.seed));
                                    if (cell.values.text("operator") == "pooling") measure_pooling(cell, record);
                                    else measure_attention(cell, record);
                                  }});

}  // namespace
}  // namespace transpool
