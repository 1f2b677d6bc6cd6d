#include "operators/pooling/threshold_mask.h"

#include "operators/pooling/kept_rows.h"
#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// Bisections leave a bracket in which phi is near its tangent; Newton steps then square the error each.
constexpr int bisections = 32;
constexpr int newton_steps = 4;

/// A gap that phi's rise fills but for this share counts as wide enough: where phi has kinks, the last digit of a score
/// would else decide whether there is a gradient.
constexpr double rounding = 1e-12;

/// In a gap this wide any tau will do: all masks are 0 or 1.
double hard_gap(const MaskFunction& phi, double temperature) { return (1 - rounding) * (phi.one - phi.zero) * temperature; }

/// tau / T (B, 1) between `lower` and `upper`, for z = s / T (B, n) with -inf for rows that are not there.
at::Tensor solve_threshold(const at::Tensor& z, std::int64_t k, at::Tensor lower, at::Tensor upper,
                           const MaskFunction& phi) {
  auto threshold = (lower + upper) / 2;
  for (int step = 0; step < bisections + newton_steps; ++step) {
    const auto shifted = z - threshold;
    const auto excess = phi.value(shifted).sum(1, /*keepdim=*/true) - k;
    const auto low = excess > 0;
    lower = at::where(low, threshold, lower);
    upper = at::where(low, upper, threshold);
    const auto middle = (lower + upper) / 2;
    if (step < bisections) {
      threshold = middle;
      continue;
    }
    const auto slope = phi.slope(shifted).sum(1, /*keepdim=*/true);
    threshold = at::where(slope > 0, at::clamp(threshold + excess / slope, lower, upper), middle);
  }
  return threshold;
}

class ThresholdMaskFunction : public torch::autograd::Function<ThresholdMaskFunction> {
 public:
  /// scores (B, n) float64, finite, -inf past the length.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& scores, std::int64_t k, double temperature,
                            const MaskFunction& phi) {
    const auto top = std::get<0>(scores.topk(std::min(k + 1, scores.size(1)), 1));
    const auto kth = top.narrow(1, k - 1, 1);
    const auto next = k < scores.size(1) ? top.narrow(1, k, 1) : at::full_like(kth, lowest);
    // True also where there is no next score.
    const auto wide_gap = (next > kth - hard_gap(phi, temperature)).logical_not_();

    // Relative to the k-th score, so that scores far from 0 lose no digits.
    const auto z = (scores - kth) / temperature;
    const auto lower = at::full_like(kth, -phi.one);
    const auto upper = at::where(wide_gap, lower, (next - kth) / temperature - phi.zero);
    const auto shifted = z - solve_threshold(z, k, lower, upper, phi);
    const auto masks = phi.value(shifted);
    const auto kept = ((scores >= kth) & (scores > lowest)).to(at::kDouble);
    const auto hard = wide_gap | ((masks - kept).abs().amax(1, /*keepdim=*/true) < nearly_hard);
    context->save_for_backward({phi.slope(shifted).masked_fill_(hard, 0)});
    context->saved_data["temperature"] = temperature;
    return at::where(hard, kept, masks);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto slope = context->get_saved_variables()[0];
    const auto total = slope.sum(1, /*keepdim=*/true);
    const auto mean = (slope * gradients[0]).sum(1, /*keepdim=*/true) / total;
    const auto centred = gradients[0] - mean.masked_fill(total == 0, 0);
    return {slope * centred / context->saved_data["temperature"].toDouble(), Variable(), Variable(), Variable()};
  }
};

class ThresholdMaskPooling : public PoolingOperator {
 public:
  ThresholdMaskPooling(const std::string& name, const MaskFunction& phi, const Options& options)
      : phi_(phi), temperature_(options.real("temperature")), keep_order_(options.flag("keep_order")) {
    const auto kernel = threshold_mask_kernels().find(name);
    if (kernel != threshold_mask_kernels().end()) kernel_ = &kernel->second;
  }

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    if (kernel_ != nullptr)
      if (auto pooled = keep_rows_by_kernel(x, scores, k, lengths, kernel_options())) return *pooled;
    const auto positions = select_top_rows(scores, k, lengths, keep_order_);
    const auto mask = threshold_mask(scores, k, lengths, temperature_, phi_);
    const auto gate = gather_rows(mask, positions).to(x.scalar_type()).unsqueeze(2);
    return {gather_rows(x, positions) * gate, gather_rows(nan_as_lowest(scores), positions), positions};
  }

  std::string backend(const at::Device& device) const override {
    return kernel_ != nullptr ? kept_rows_backend(device) : "aten";
  }

 private:
  KeptRowsOptions kernel_options() const {
    return {.gate = RowGate::mask,
            .keep_order = keep_order_,
            .mask = kernel_,
            .zero = phi_.zero,
            .one = phi_.one,
            .hard_gap = hard_gap(phi_, temperature_),
            .temperature = temperature_};
  }

  MaskFunction phi_;
  const ThresholdMaskKernel* kernel_ = nullptr;
  double temperature_;
  bool keep_order_;
};

Cost threshold_mask_cost(const PoolingShape& shape, const Options&) {
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto rows = static_cast<double>(shape.batch * shape.pooled_length);
  const auto scores = static_cast<double>(shape.batch * shape.length);
  const double kept = rows * static_cast<double>(shape.width) * element;
  Cost cost;
  cost.bytes_read = kept + scores * sizeof(float);
  cost.bytes_written = kept + rows * (sizeof(float) + sizeof(std::int64_t));
  // phi' and the mask in float64, the scores before they are bounded and as they are gathered, which of them are NaN (for
  // the mask and for the output), and which are padding.
  const double per_score = 2 * sizeof(double) + 2 * sizeof(float) + 3;
  // Rows with and without their masks; positions, their three gathers' indices and gaps, masks and scores.
  const double per_row = 4 * sizeof(std::int64_t) + 3 + element + sizeof(float);
  cost.activation_bytes = 2 * kept + scores * per_score + rows * per_row;
  return cost;
}

}  // namespace

at::Tensor threshold_mask(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                          double temperature, const MaskFunction& phi) {
  auto bounded = bounded_scores(scores).to(at::kDouble);
  if (lengths) bounded = bounded.masked_fill(valid_positions(*lengths, scores.size(1)).logical_not(), lowest);
  return ThresholdMaskFunction::apply(bounded, k, temperature, phi);
}

PoolingVariant threshold_mask_variant(const ThresholdMask& family_member) {
  PoolingVariant variant;
  variant.name = family_member.name;
  variant.description = family_member.description;
  variant.source = family_member.source;
  variant.options = {{.name = "temperature",
                      .type = OptionType::real,
                      .fallback = family_member.temperature,
                      .meaning = "T in mask = phi((s - tau) / T): lower is nearer to hard top-k",
                      .minimum = 1e-6,
                      .maximum = 1e6},
                     {.name = "keep_order",
                      .type = OptionType::boolean,
                      .fallback = true,
                      .meaning = "rows in source order, else by falling score"}};
  const auto name = family_member.name;
  const auto phi = family_member.phi;
  const auto reference = family_member.reference;
  variant.make = [name, phi](const Options& options) { return std::make_shared<ThresholdMaskPooling>(name, phi, options); };
  variant.reference = [reference](const Options& options) { return threshold_mask_reference(reference, options); };
  variant.cost = threshold_mask_cost;
  variant.sharp = {{"temperature", 1e-4}};
  return variant;
}

}  // namespace transpool
