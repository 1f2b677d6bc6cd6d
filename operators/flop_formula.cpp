#include "operators/flop_formula.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace transpool {
namespace {

std::map<std::string, FlopFormula>& mutable_formulas() {
  static std::map<std::string, FlopFormula> formulas;
  return formulas;
}

using Arguments = c10::ArrayRef<const c10::IValue>;

double size(const c10::IValue& value, std::int64_t dimension) {
  return static_cast<double>(value.toTensor().size(dimension));
}

CallFlops matrix_product(const c10::IValue& a, const c10::IValue& b) {
  const auto& left = a.toTensor();
  return {2.0 * static_cast<double>(left.numel()) * size(b, -1)};
}

/// Pairs of a query and a key that a call computes: all, or those not above the diagonal where it is causal.
double attention_pairs(const at::Tensor& q, const at::Tensor& k, bool causal) {
  const auto queries = static_cast<double>(q.size(-2));
  const auto keys = static_cast<double>(k.size(-2));
  const auto heads = static_cast<double>(q.numel()) / static_cast<double>(q.size(-1) * q.size(-2));
  return heads * (causal ? queries * (queries + 1) / 2 : queries * keys);
}

/// `causal` is the place of the is_causal argument; q, k, v stand at `first`.
FlopFormula attention_forward(std::size_t causal) {
  return [causal](Arguments arguments) {
    const auto& q = arguments[0].toTensor();
    const auto& v = arguments[2].toTensor();
    const auto pairs = attention_pairs(q, arguments[1].toTensor(), arguments[causal].toBool());
    return CallFlops{2.0 * pairs * static_cast<double>(q.size(-1) + v.size(-1))};
  };
}

/// Five products for the forward pass's two: QK^T again, then dV, dP, dQ and dK.
FlopFormula attention_backward(std::size_t causal) {
  return [causal](Arguments arguments) {
    const auto& q = arguments[1].toTensor();
    const auto& v = arguments[3].toTensor();
    const auto pairs = attention_pairs(q, arguments[2].toTensor(), arguments[causal].toBool());
    const auto to_key = 2.0 * pairs * static_cast<double>(q.size(-1));
    const auto to_value = 2.0 * pairs * static_cast<double>(v.size(-1));
    return CallFlops{3 * to_key + 2 * to_value, to_key};
  };
}

/// Pairs of one sequence of queries and keys that meet at their last rows, no key further than `left` before its query or
/// `right` behind it; negative: no bound.
double window_pairs(double queries, double keys, double left, double right) {
  const double shift = keys - queries;
  const auto beyond = [](double rows, double first) {  // sum over rows of how far first, first + 1, ... reach beyond zero
    const double reached = std::clamp(first + rows - 1, 0.0, rows);
    const double last = first + rows - 1;
    return last <= 0 ? 0.0 : reached * (2 * last - reached + 1) / 2;
  };
  double pairs = queries * keys;
  if (right >= 0) pairs -= beyond(queries, keys - 1 - right - (queries - 1) - shift);
  if (left >= 0) pairs -= beyond(queries, shift - left);
  return pairs;
}

/// Of flash attention's own calls: q (sequences, n, h, e), or (rows, h, e) in segments, which are taken to be of the longest
/// length, since their bounds stand on the device.
double flash_pairs(Arguments arguments, std::size_t first, std::size_t bounds, std::size_t causal, std::size_t window) {
  const auto& q = arguments[first].toTensor();
  const auto bound = [&](std::size_t i) { return arguments[i].isNone() ? -1.0 : static_cast<double>(arguments[i].toInt()); };
  const double left = bound(window);
  const double right = arguments[causal].toBool() ? 0.0 : bound(window + 1);
  const bool segments = arguments[bounds].isTensor() && arguments[bounds].toTensor().defined();
  const auto queries = segments ? bound(bounds + 2) : static_cast<double>(q.size(1));
  const auto keys = segments ? bound(bounds + 3) : static_cast<double>(arguments[first + 1].toTensor().size(1));
  const auto rows = static_cast<double>(q.numel()) / static_cast<double>(q.size(-1));
  return rows / queries * window_pairs(queries, keys, left, right);
}

CallFlops flash_forward_flops(Arguments arguments) {
  return {4.0 * flash_pairs(arguments, 0, 3, 8, 11) * size(arguments[0], -1)};
}

CallFlops flash_backward_flops(Arguments arguments) {
  const double product = 2.0 * flash_pairs(arguments, 1, 6, 11, 15) * size(arguments[1], -1);
  return {5 * product, product};
}

const RegisterFlopFormula mm("aten::mm", [](Arguments a) { return matrix_product(a[0], a[1]); });
const RegisterFlopFormula bmm("aten::bmm", [](Arguments a) { return matrix_product(a[0], a[1]); });
const RegisterFlopFormula addmm("aten::addmm", [](Arguments a) { return matrix_product(a[1], a[2]); });
const RegisterFlopFormula baddbmm("aten::baddbmm", [](Arguments a) { return matrix_product(a[1], a[2]); });
const RegisterFlopFormula fused_addmm("aten::_addmm_activation", [](Arguments a) { return matrix_product(a[1], a[2]); });
const RegisterFlopFormula mv("aten::mv",
                             [](Arguments a) { return CallFlops{2.0 * static_cast<double>(a[0].toTensor().numel())}; });
const RegisterFlopFormula addmv("aten::addmv",
                                [](Arguments a) { return CallFlops{2.0 * static_cast<double>(a[1].toTensor().numel())}; });

const RegisterFlopFormula cpu_flash("aten::_scaled_dot_product_flash_attention_for_cpu", attention_forward(4));
const RegisterFlopFormula cpu_flash_backward("aten::_scaled_dot_product_flash_attention_for_cpu_backward",
                                             attention_backward(7));
const RegisterFlopFormula flash("aten::_scaled_dot_product_flash_attention", attention_forward(4));
const RegisterFlopFormula flash_backward("aten::_scaled_dot_product_flash_attention_backward", attention_backward(11));
const RegisterFlopFormula flash_segments("aten::_flash_attention_forward", flash_forward_flops);
const RegisterFlopFormula flash_segments_backward("aten::_flash_attention_backward", flash_backward_flops);
const RegisterFlopFormula efficient("aten::_scaled_dot_product_efficient_attention", attention_forward(6));
const RegisterFlopFormula efficient_backward("aten::_scaled_dot_product_efficient_attention_backward",
                                             attention_backward(11));
const RegisterFlopFormula cudnn("aten::_scaled_dot_product_cudnn_attention", attention_forward(6));
const RegisterFlopFormula cudnn_backward("aten::_scaled_dot_product_cudnn_attention_backward", attention_backward(14));

}  // namespace

const std::map<std::string, FlopFormula>& flop_formulas() { return mutable_formulas(); }

RegisterFlopFormula::RegisterFlopFormula(const std::string& name, FlopFormula formula) {
  mutable_formulas()[name] = std::move(formula);
}

}  // namespace transpool
