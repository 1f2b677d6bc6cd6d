#include "operators/attention/attention.h"

#include <limits>

namespace transpool {
namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// softmax(Q) over features times (softmax(K) over positions, transposed, times V): the e x e product comes first, so the
/// work is linear in the length.
class EfficientAttention : public AttentionOperator {
 public:
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    refuse_causal("efficient", mask);
    auto keys = k;
    if (mask.key_lengths) {
      // A batch row without any key would be 0/0: it keeps its keys here and is zeroed below.
      const auto valid = valid_positions(mask.key_lengths->clamp_min(1), k.size(2)).view({k.size(0), 1, k.size(2), 1});
      keys = k.masked_fill(valid.logical_not(), lowest);
    }
    const auto context = at::matmul(keys.softmax(2).to(v.scalar_type()).transpose(2, 3), v);
    const auto out = at::matmul(q.softmax(3).to(v.scalar_type()), context);
    return mask.key_lengths ? out.masked_fill((*mask.key_lengths == 0).view({-1, 1, 1, 1}), 0) : out;
  }
};

/// The same as weights of query-key pairs: w_ij = sum over features f of softmax(q_i)_f softmax(K_:f)_j.
class EfficientByPairs : public AttentionOperator {
 public:
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    std::vector<at::Tensor> batch;
    for (std::int64_t b = 0; b < q.size(0); ++b) {
      const auto m = mask.key_lengths ? (*mask.key_lengths)[b].item<std::int64_t>() : k.size(2);
      const auto keys = k[b].narrow(1, 0, m).to(at::kDouble).exp();
      const auto shares = keys / keys.sum(1, true);
      const auto values = v[b].narrow(1, 0, m).to(at::kDouble);
      const auto queries = q[b].to(at::kDouble).exp();
      const auto weights = at::einsum("hif,hjf->hij", {queries / queries.sum(2, true), shares});
      batch.push_back(at::einsum("hij,hje->hie", {weights, values}));
    }
    return at::stack(batch).to(q.scalar_type());
  }
};

Cost efficient_cost(const AttentionShape& shape, const Options&) {
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto rows = static_cast<double>(shape.queries + shape.keys);
  const auto e = static_cast<double>(shape.head_width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  // e pairs a row stand for the products with the e x e context.
  auto cost = attention_cost(shape, heads * rows * e / 2);
  // The output and the softmax of q; the softmax of k and, as a product over contiguous heads, v; the context.
  cost.activation_bytes = heads * (2 * rows * e + e * e) * element;
  if (shape.masked) cost.activation_bytes += static_cast<double>(shape.batch * (shape.keys + 1));
  return cost;
}

const RegisterAttention registration({
    {.name = "efficient",
     .description = "softmax over the features of q and over the positions of k, multiplied from the right: linear",
     .source = "arXiv 1812.01243, efficient attention with softmax normalisation",
     .capabilities = {.cross = true}},
    [](const Options&) { return std::make_shared<EfficientAttention>(); },
    [](const Options&) { return std::make_shared<EfficientByPairs>(); },
    efficient_cost,
});

}  // namespace
}  // namespace transpool
