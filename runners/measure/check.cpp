#include "runners/measure/check.h"

#include "runners/measure/device.h"
#include "runners/measure/operator_inputs.h"
#include "runners/measure/operator_pass.h"
#include "runners/report/display.h"
#include "runners/report/fields.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace transpool {
namespace {

using Lengths = std::vector<std::int64_t>;

struct PoolingCase {
  std::int64_t batch, n, k, width;
  Lengths lengths = {};
  std::string scores = "uniform";
};

const std::vector<PoolingCase> pooling_cases = {
    {2, 16, 4, 8},
    {3, 17, 4, 6},
    {1, 31, 5, 3},
    {2, 8, 8, 4},
    {2, 9, 1, 5},
    {1, 1, 1, 1},
    {2, 130, 32, 16},
    {2, 33, 7, 4, {}, "near_ties"},
    {2, 24, 6, 4, {}, "ties"},
    {3, 17, 4, 6, {17, 10, 4}},
    {4, 17, 4, 6, {0, 1, 3, 16}},
};

struct AttentionCase {
  std::int64_t batch, heads, queries, keys, width;
  bool causal = false;
  Lengths lengths = {};
};

const std::vector<AttentionCase> attention_cases = {
    {2, 2, 16, 16, 8},       {1, 3, 17, 17, 5}, {2, 1, 1, 1, 4}, {1, 2, 130, 130, 8}, {3, 2, 33, 33, 4, false, {33, 7, 0}},
    {2, 2, 19, 19, 4, true}, {2, 2, 7, 13, 4},
};

std::optional<at::Tensor> as_tensor(const Lengths& lengths, const at::Device& device) {
  if (lengths.empty()) return std::nullopt;
  return at::tensor(lengths, at::TensorOptions().dtype(at::kLong)).to(device);
}

std::string lengths_text(const Lengths& lengths) {
  return lengths.empty() ? "" : fmt::format(" lengths {}", fmt::join(lengths, ","));
}

std::string shape_text(const PoolingCase& c) {
  return fmt::format("{} x {} -> {}, d {}", c.batch, c.n, c.k, c.width) + lengths_text(c.lengths) +
         (c.scores == "uniform" ? "" : " " + c.scores);
}

std::string shape_text(const AttentionCase& c) {
  return fmt::format("{} x {} heads, {} x {}, e {}", c.batch, c.heads, c.queries, c.keys, c.width) +
         (c.causal ? " causal" : "") + lengths_text(c.lengths);
}

PoolingPass make_pass(const PoolingCase& c, at::ScalarType dtype, const std::string& device) {
  PoolingPass pass;
  pass.shape = {c.batch, c.n, c.width, c.k, dtype};
  pass.device = device_from_name(device);
  pass.scores_kind = c.scores == "ties" ? "uniform" : c.scores;
  pass.draw();
  pass.lengths = as_tensor(c.lengths, pass.device);
  if (c.scores == "ties") pass.scores = (pass.scores.detach() * 4).floor().div(4).set_requires_grad(true);
  return pass;
}

AttentionPass make_pass(const AttentionCase& c, at::ScalarType dtype, const std::string& device) {
  AttentionPass pass;
  pass.shape = {c.batch, c.heads, c.queries, c.keys, c.width, c.causal, !c.lengths.empty(), dtype};
  pass.device = device_from_name(device);
  pass.draw(as_tensor(c.lengths, pass.device));
  return pass;
}

void check_support(const PoolingVariant& variant, const PoolingPass& pass, const std::string& device) {
  check_pooling_support(variant, pass.shape, device);
}

void check_support(const AttentionVariant& variant, const AttentionPass& pass, const std::string& device) {
  check_attention_support(variant, pass.shape, device);
}

/// The least root mean square that gradients count with: where they cancel (k = n) only rounding is left of them.
double error_floor(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16 ? 0.1 : 1e-3; }

template <class Variant, class Case>
CheckRow check_case(const Selection<Variant>& ours, const Selection<Variant>* theirs, const Case& c,
                    const std::string& dtype, const std::string& device) {
  CheckRow row{device, dtype, shape_text(c), {}, allowed_error(dtype_from_name(dtype)), "", false};
  try {
    auto pass = make_pass(c, dtype_from_name(dtype), device);
    check_support(*ours.variant, pass, device);
    if (theirs != nullptr) check_support(*theirs->variant, pass, device);
    pass.op = ours.variant->make(ours.options);
    const auto other = theirs == nullptr ? ours.variant->reference(ours.options) : theirs->variant->make(theirs->options);
    const auto seed = draw_seed();
    const auto found = pass.results(*pass.op, pass.shape.dtype, seed);
    const auto expected = pass.results(*other, at::kDouble, seed);
    at::manual_seed(seed + 1);
    for (std::size_t i = 0; i < found.size(); ++i)
      row.errors.push_back(relative_error(found[i], expected[i], error_floor(pass.shape.dtype)));
  } catch (const Unsupported& unsupported) {
    row.problem = unsupported.what();
    row.unsupported = true;
  } catch (const c10::Error& error) {
    row.problem = error.what_without_backtrace();
  } catch (const std::exception& error) {
    row.problem = error.what();
  }
  return row;
}

template <class Pass, class Variant, class Case>
Check check_kind(const Registry<Variant>& registry, const Json& name, const std::optional<Json>& against,
                 const std::vector<std::string>& devices, const std::vector<Case>& cases) {
  const auto ours = registry.select(name, Where("check"));
  std::optional<Selection<Variant>> theirs;
  if (against) theirs = registry.select(*against, Where("--against"));
  Check check{
      registry.kind(), display_value(name), against ? display_value(*against) : "its reference", Pass::result_names(), {}};
  at::manual_seed(20090516);
  for (const auto& device : devices)
    for (const auto& dtype : ours.variant->capabilities.dtypes)
      for (const auto& c : cases) check.rows.push_back(check_case(ours, theirs ? &*theirs : nullptr, c, dtype, device));
  return check;
}

std::string verdict(const CheckRow& row) { return row.unsupported ? "--" : row.holds() ? "ok" : "BAD"; }

/// Of each result and dtype the worst error, for the closing lines.
std::string worst_text(const Check& check) {
  std::vector<std::string> dtypes;
  for (const auto& row : check.rows)
    if (std::find(dtypes.begin(), dtypes.end(), row.dtype) == dtypes.end()) dtypes.push_back(row.dtype);
  std::string text;
  for (const auto& dtype : dtypes) {
    std::vector<double> worst(check.results.size(), 0);
    double allowed = 0;
    for (const auto& row : check.rows) {
      if (row.dtype != dtype) continue;
      allowed = row.allowed;
      for (std::size_t i = 0; i < row.errors.size(); ++i) worst[i] = std::max(worst[i], row.errors[i]);
    }
    text += fmt::format("worst of {}:", dtype);
    for (std::size_t i = 0; i < worst.size(); ++i) text += fmt::format(" {} {:.1e},", check.results[i], worst[i]);
    text += fmt::format(" allowed {:.0e}\n", allowed);
  }
  return text;
}

std::string print_text(const Check& check) {
  std::size_t width = 5;
  for (const auto& row : check.rows) width = std::max(width, display_width(row.shape));
  auto text = fmt::format("{} operator {} against {}, relative errors\n\n", check.kind, check.name, check.against);
  text += "     " + pad_right("device", 6) + "  " + pad_right("dtype", 8) + "  " + pad_right("shape", width);
  for (const auto& result : check.results) text += "  " + result;
  text += "\n";
  for (const auto& row : check.rows) {
    text += pad_right(verdict(row), 3) + "  " + pad_right(row.device, 6) + "  " + pad_right(row.dtype, 8) + "  " +
            pad_right(row.shape, width);
    for (std::size_t i = 0; i < row.errors.size(); ++i)
      text += "  " + pad_left(fmt::format("{:.1e}", row.errors[i]), display_width(check.results[i]));
    text += (row.problem.empty() ? "" : "  " + first_line(row.problem, 100)) + "\n";
  }
  return text + "\n" + worst_text(check) + (check.holds() ? "holds\n" : "does not hold\n");
}

std::string print_json(const Check& check) {
  Json json = {{"kind", check.kind},
               {"name", check.name},
               {"against", check.against},
               {"holds", check.holds()},
               {"rows", Json::array()}};
  for (const auto& row : check.rows) {
    Json errors = Json::object();
    for (std::size_t i = 0; i < row.errors.size(); ++i) errors[check.results[i]] = finite_or_null(row.errors[i]);
    json["rows"].push_back({{"device", row.device},
                            {"dtype", row.dtype},
                            {"shape", row.shape},
                            {"errors", errors},
                            {"allowed", row.allowed},
                            {"status", row.unsupported ? "unsupported"
                                       : row.holds()   ? "ok"
                                                       : "failed"},
                            {"reason", row.problem}});
  }
  return pretty(json);
}

}  // namespace

bool CheckRow::holds() const {
  return unsupported ||
         (problem.empty() && std::all_of(errors.begin(), errors.end(), [this](double error) { return error <= allowed; }));
}

bool Check::holds() const {
  return std::all_of(rows.begin(), rows.end(), [](const CheckRow& row) { return row.holds(); }) &&
         std::any_of(rows.begin(), rows.end(), [](const CheckRow& row) { return !row.unsupported; });
}

Check check_variant(const std::string& kind, const Json& name, const std::optional<Json>& against,
                    const std::vector<std::string>& devices) {
  if (kind == "pooling") return check_kind<PoolingPass>(pooling_registry(), name, against, devices, pooling_cases);
  if (kind == "attention") return check_kind<AttentionPass>(attention_registry(), name, against, devices, attention_cases);
  throw UsageError("check: " + unknown_name_message("kind", kind, {"pooling", "attention"}));
}

std::string print_check(const Check& check, const std::string& format) {
  if (format == "text") return print_text(check);
  if (format == "json") return print_json(check);
  throw UsageError("--format: " + unknown_name_message("format", format, {"text", "json"}));
}

}  // namespace transpool
