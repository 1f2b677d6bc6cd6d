#include "operators/flop_formula.h"

#include <ATen/ATen.h>

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
  const auto heads = static_cast<double>(q.numel() / (q.size(-1) * q.size(-2)));
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
