#include "operators/attention/attention.h"
#include "operators/pooling/pooling.h"
#include "runners/measure/device.h"
#include "runners/measure/level.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

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

void check(const Cell& cell, const Where& where) {
  const auto& values = cell.values;
  if (values.text("operator") == "pooling") {
    const auto shape = pooling_shape(values);
    if (shape.pooled_length > shape.length)
      where.fail(fmt::format("pooled_length: {} is out of range; allowed: 1 to source_length = {}", shape.pooled_length,
                             shape.length));
    check_pooling_support(*pooling_registry().select(values.raw("pooling"), where).variant, shape, cell.device);
    return;
  }
  if (values.integer("width") % values.integer("heads") != 0)
    where.fail(fmt::format("heads: {} does not divide width {}; allowed: a divisor of the width", values.integer("heads"),
                           values.integer("width")));
  check_attention_support(*attention_registry().select(values.raw("attention"), where).variant, attention_shape(values),
                          cell.device);
}

/// Scores of the named distribution, (B, n) float32.
at::Tensor draw_scores(const std::string& distribution, std::int64_t batch, std::int64_t n,
                       const at::TensorOptions& options) {
  const auto uniform = at::rand({batch, n}, options);
  if (distribution == "uniform") return uniform;
  if (distribution == "gaussian") return at::randn({batch, n}, options);
  if (distribution == "near_ties") return 0.5 + 1e-4 * uniform;
  if (distribution == "all_low") return 1e-5 + 1e-3 * uniform;
  const auto high = at::rand({batch, n}, options) < 0.0625;  // two_peaked: a sixteenth of the rows stand out
  return at::where(high, 0.95 + 0.05 * uniform, 0.05 * uniform);
}

std::optional<at::Tensor> draw_lengths(const std::string& kind, std::int64_t batch, std::int64_t n,
                                       const at::Device& device) {
  if (kind == "full") return std::nullopt;
  return at::randint((n + 1) / 2, n + 1, {batch}, at::TensorOptions().dtype(at::kLong).device(device));
}

/// "" where a is near b in the dtype's own precision, else the worst relative error in words.
std::string compare(const std::string& what, const at::Tensor& a, const at::Tensor& b) {
  const auto difference = (a.to(at::kDouble) - b.to(at::kDouble)).norm().item<double>();
  const auto scale = b.to(at::kDouble).norm().item<double>();
  const double error = difference / std::max(scale, 1e-30);
  const bool half = a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16;
  const double tolerance = a.scalar_type() == at::kDouble ? 1e-9 : half ? 1e-2 : 1e-4;
  if (error <= tolerance) return "";
  return fmt::format("{}: relative error {:.3g} against the reference; allowed: {:.0e}", what, error, tolerance);
}

/// Inputs and one pass of a pooling operator.
struct PoolingPass {
  std::shared_ptr<const PoolingOperator> op;
  PoolingShape shape;
  std::string scores_kind, lengths_kind;
  at::Device device;
  bool backward;
  at::Tensor x, scores, cotangent;
  std::optional<at::Tensor> lengths;

  void draw() {
    const auto options = at::TensorOptions().device(device);
    x = at::randn({shape.batch, shape.length, shape.width}, options.dtype(at::kFloat))
            .to(shape.dtype)
            .set_requires_grad(backward);
    const auto score_dtype = shape.dtype == at::kDouble ? at::kDouble : at::kFloat;
    scores = draw_scores(scores_kind, shape.batch, shape.length, options.dtype(at::kFloat))
                 .to(score_dtype)
                 .set_requires_grad(backward);
    lengths = draw_lengths(lengths_kind, shape.batch, shape.length, device);
    cotangent = at::randn({shape.batch, shape.pooled_length, shape.width}, options.dtype(at::kFloat)).to(shape.dtype);
  }

  void run() const {
    const at::AutoGradMode gradients(backward);
    const auto pooled = op->forward(x, scores, shape.pooled_length, lengths);
    if (backward)
      torch::autograd::grad({pooled.values}, {x, scores}, {cotangent}, std::nullopt, false, /*allow_unused=*/true);
  }

  std::string check(const PoolingOperator& reference) const {
    const auto pass = [&](const PoolingOperator& which, at::ScalarType dtype) {
      const auto in = x.detach().to(dtype).set_requires_grad(backward);
      const auto s =
          scores.detach().to(dtype == at::kDouble ? at::kDouble : scores.scalar_type()).set_requires_grad(backward);
      auto pooled = which.forward(in, s, shape.pooled_length, lengths);
      std::vector<at::Tensor> results = {pooled.values.detach()};
      if (!backward) return results;
      for (const auto& gradient :
           torch::autograd::grad({pooled.values}, {in, s}, {cotangent.to(dtype)}, std::nullopt, false, true))
        results.push_back(gradient.defined() ? gradient : at::zeros({1}));
      return results;
    };
    const auto ours = pass(*op, shape.dtype);
    const auto theirs = pass(reference, at::kDouble);
    const char* names[] = {"values", "gradient of x", "gradient of the scores"};
    for (std::size_t i = 0; i < ours.size(); ++i)
      if (auto wrong = compare(names[i], ours[i], theirs[i]); !wrong.empty()) return wrong;
    return "";
  }
};

void measure_pooling(const Cell& cell, Record& record) {
  const auto& values = cell.values;
  const auto selection = pooling_registry().select(values.raw("pooling"));
  const auto reference = selection.variant->reference(selection.options);
  auto pass = std::make_shared<PoolingPass>(PoolingPass{selection.variant->make(selection.options),
                                                        pooling_shape(values),
                                                        values.text("scores"),
                                                        values.text("lengths"),
                                                        device_from_name(cell.device),
                                                        values.text("pass") == "forward+backward",
                                                        {},
                                                        {},
                                                        {},
                                                        {}});
  pass->draw();
  record.details["backend"] = {{"pooling", pass->op->backend(pass->device)}};
  Workload workload;
  workload.what = "one " + values.text("pass") + " pass of the pooling operator";
  workload.run = [pass] { pass->run(); };
  workload.redraw = [pass] { pass->draw(); };
  workload.check = [pass, reference] { return pass->check(*reference); };
  workload.cost = selection.variant->cost(pass->shape, selection.options);
  workload.backward = pass->backward;
  measure_workload(cell, workload, record);
}

struct AttentionPass {
  std::shared_ptr<const AttentionOperator> op;
  AttentionShape shape;
  std::string lengths_kind;
  at::Device device;
  bool backward;
  at::Tensor q, k, v, cotangent;
  AttentionMask mask;

  void draw() {
    const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
    const auto one = [&](std::int64_t rows) {
      // The layout that projections give: (B, n, h, e) seen as (B, h, n, e).
      return at::randn({shape.batch, rows, shape.heads, shape.head_width}, options).to(shape.dtype).transpose(1, 2);
    };
    q = one(shape.queries).set_requires_grad(backward);
    k = one(shape.keys).set_requires_grad(backward);
    v = one(shape.keys).set_requires_grad(backward);
    cotangent = one(shape.queries);
    mask = {draw_lengths(lengths_kind, shape.batch, shape.keys, device), shape.causal};
  }

  std::vector<at::Tensor> results(const AttentionOperator& which, at::ScalarType dtype) const {
    const at::AutoGradMode gradients(backward);
    std::vector<at::Tensor> in;
    for (const auto& t : {q, k, v})
      in.push_back(dtype == shape.dtype ? t : t.detach().to(dtype).set_requires_grad(backward));
    auto out = which.forward(in[0], in[1], in[2], mask);
    // Rows past the length are nobody's: they are left out of the comparison and of the loss.
    if (mask.key_lengths) out = out * valid_positions(*mask.key_lengths, shape.queries).unsqueeze(1).unsqueeze(3);
    std::vector<at::Tensor> all = {out.detach()};
    if (backward)
      for (const auto& gradient : torch::autograd::grad({out}, in, {cotangent.to(dtype)})) all.push_back(gradient);
    return all;
  }
};

void measure_attention(const Cell& cell, Record& record) {
  const auto& values = cell.values;
  const auto selection = attention_registry().select(values.raw("attention"));
  const auto reference = selection.variant->reference(selection.options);
  auto pass = std::make_shared<AttentionPass>(AttentionPass{selection.variant->make(selection.options),
                                                            attention_shape(values),
                                                            values.text("lengths"),
                                                            device_from_name(cell.device),
                                                            values.text("pass") == "forward+backward",
                                                            {},
                                                            {},
                                                            {},
                                                            {},
                                                            {}});
  pass->draw();
  record.details["backend"] = {{"attention", pass->op->backend(pass->device)}};
  Workload workload;
  workload.what = "one " + values.text("pass") + " pass of the attention operator";
  workload.run = [pass] { pass->results(*pass->op, pass->shape.dtype); };
  workload.redraw = [pass] { pass->draw(); };
  workload.check = [pass, reference]() -> std::string {
    const auto ours = pass->results(*pass->op, pass->shape.dtype);
    const auto theirs = pass->results(*reference, at::kDouble);
    const char* names[] = {"output", "gradient of q", "gradient of k", "gradient of v"};
    for (std::size_t i = 0; i < ours.size(); ++i)
      if (auto wrong = compare(names[i], ours[i], theirs[i]); !wrong.empty()) return wrong;
    return "";
  };
  workload.cost = selection.variant->cost(pass->shape, selection.options);
  workload.backward = pass->backward;
  measure_workload(cell, workload, record);
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
