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

AttentionShape attention_shape(const Options& values) {
  const auto n = values.integer("source_length");
  const auto heads = values.integer("heads");
  return {values.integer("batch"),
          heads,
          n,
          n,
          values.integer("width") / heads,
          values.flag("causal"),
          values.text("lengths") == "random",
          dtype_from_name(values.text("dtype"))};
}

bool asks_for_selection(const Cell& cell) {
  return std::find(cell.measure.begin(), cell.measure.end(), "selection") != cell.measure.end();
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
    if (!variant.capabilities.differentiable && values.text("pass") != "forward")
      throw Unsupported(
          fmt::format("pooling operator \"{}\" does not support the pass {}", variant.name, values.text("pass")));
    return;
  }
  if (asks_for_selection(cell)) where.fail("\"selection\" is measured of pooling operators only");
  if (values.integer("width") % values.integer("heads") != 0)
    where.fail(fmt::format("heads: {} does not divide width {}; allowed: a divisor of the width", values.integer("heads"),
                           values.integer("width")));
  check_attention_support(*attention_registry().select(values.raw("attention"), where).variant, attention_shape(values),
                          cell.device);
}

/// What both kinds end with: the pass as a workload, checked against the reference and measured.
template <class Pass, class Reference>
void measure_pass(const Cell& cell, const std::shared_ptr<Pass>& pass, const std::shared_ptr<Reference>& reference,
                  const Cost& cost, Record& record) {
  const auto kind = cell.values.text("operator");
  record.details["backend"] = {{kind, pass->op->backend(pass->device)}};
  Workload workload;
  workload.what = "one " + cell.values.text("pass") + " pass of the " + kind + " operator";
  workload.run = [pass] { pass->run(); };
  workload.redraw = [pass] { pass->draw(); };
  workload.check = [pass, reference] { return disagreement(*pass, *reference); };
  workload.cost = cost;
  workload.backward = pass->backward;
  measure_workload(cell, workload, record);
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
  measure_pass(cell, pass, selection.variant->reference(selection.options),
               selection.variant->cost(pass->shape, selection.options), record);
  if (asks_for_selection(cell)) measure_selection(cell, selection, *pass, record);
}

void measure_attention(const Cell& cell, Record& record) {
  const auto selection = attention_registry().select(cell.values.raw("attention"));
  const auto pass = pass_of<AttentionPass>(cell, selection, attention_shape(cell.values));
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
    cost = selection.variant->cost(attention_shape(values), selection.options);
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
