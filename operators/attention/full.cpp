#include "operators/attention/scaled_dot_product.h"

namespace transpool {
namespace {

class FullAttention : public AttentionOperator {
 public:
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    return scaled_dot_product(q, k, v, mask);
  }
  std::string backend(const at::Device&) const override { return "sdpa"; }
};

Cost full_cost(const AttentionShape& shape, const Options&) {
  const auto queries = static_cast<double>(shape.queries);
  const auto keys = static_cast<double>(shape.keys);
  const double pairs = shape.causal ? queries * (queries + 1) / 2 : queries * keys;
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  auto cost = attention_cost(shape, heads * pairs);
  // With lengths, the mask, and the output before the rows without any key are zeroed.
  if (shape.masked) cost.activation_bytes += mask_bytes(shape) + cost.bytes_written;
  if (shape.causal && shape.masked) {
    // With lengths the causal mask is a tensor, and the fused call works on whole rows.
    const double extra = 4 * heads * (queries * keys - pairs) * static_cast<double>(shape.head_width);
    cost.forward_differences = {{"causal_by_mask", extra}};
    cost.backward_differences = {{"causal_by_mask", 2 * extra}};
  }
  return cost;
}

const RegisterAttention registration({
    {.name = "full",
     .description = "attention over all positions, by LibTorch's fused kernels",
     .source = "arXiv 1706.03762, equation 1",
     .capabilities = {.causal = true, .cross = true}},
    [](const Options&) { return std::make_shared<FullAttention>(); },
    [](const Options& options) { return attention_registry().find("full_math").make(options); },
    full_cost,
});

}  // namespace
}  // namespace transpool
