#include "models/multi_head_attention.h"

#include "operators/attention/scaled_dot_product.h"

#include <fmt/format.h>

namespace transpool {

void check_heads(std::int64_t width, std::int64_t heads) {
  if (heads < 1 || width % heads != 0)
    throw UsageError(fmt::format("heads: {} does not divide width {}; allowed: a divisor of the width", heads, width));
}

torch::Tensor split_heads(const torch::Tensor& x, std::int64_t heads) {
  return x.unflatten(2, {heads, x.size(2) / heads}).transpose(1, 2);
}

torch::Tensor merge_heads(const torch::Tensor& x) { return x.transpose(1, 2).reshape({x.size(0), x.size(2), -1}); }

Cost projection_cost(std::int64_t rows, std::int64_t in, std::int64_t out, at::ScalarType dtype) {
  Cost cost;
  cost.flops = 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
  cost.backward_flops = 2 * cost.flops;
  cost.activation_bytes =
      static_cast<double>(rows) * static_cast<double>(out) * static_cast<double>(c10::elementSize(dtype));
  return cost;
}

SelfAttentionImpl::SelfAttentionImpl(std::int64_t width, std::int64_t heads,
                                     std::shared_ptr<const AttentionOperator> attention)
    : heads_(heads), attention_(std::move(attention)) {
  check_heads(width, heads);
  input_ = register_module("input", torch::nn::Linear(width, 3 * width));
  output_ = register_module("output", torch::nn::Linear(width, width));
}

torch::Tensor SelfAttentionImpl::forward(const torch::Tensor& x, const AttentionMask& mask) {
  const auto parts = input_->forward(x).chunk(3, 2);
  return output_->forward(merge_heads(attention_->forward(split_heads(parts[0], heads_), split_heads(parts[1], heads_),
                                                          split_heads(parts[2], heads_), mask)));
}

torch::Tensor SelfAttentionImpl::forward_step(const torch::Tensor& x, torch::Tensor& keys, torch::Tensor& values,
                                              std::int64_t step) {
  const auto parts = input_->forward(x).chunk(3, 2);
  keys.narrow(2, step, 1).copy_(split_heads(parts[1], heads_));
  values.narrow(2, step, 1).copy_(split_heads(parts[2], heads_));
  const auto out =
      scaled_dot_product(split_heads(parts[0], heads_), keys.narrow(2, 0, step + 1), values.narrow(2, 0, step + 1), {});
  return output_->forward(merge_heads(out));
}

CrossAttentionImpl::CrossAttentionImpl(std::int64_t width, std::int64_t heads) : heads_(heads) {
  check_heads(width, heads);
  query_ = register_module("query", torch::nn::Linear(width, width));
  memory_ = register_module("memory", torch::nn::Linear(width, 2 * width));
  output_ = register_module("output", torch::nn::Linear(width, width));
}

std::pair<torch::Tensor, torch::Tensor> CrossAttentionImpl::project_memory(const torch::Tensor& memory) {
  const auto parts = memory_->forward(memory).chunk(2, 2);
  return {split_heads(parts[0], heads_), split_heads(parts[1], heads_)};
}

torch::Tensor CrossAttentionImpl::forward(const torch::Tensor& x, const torch::Tensor& keys, const torch::Tensor& values,
                                          const AttentionMask& mask) {
  const auto query = split_heads(query_->forward(x), heads_);
  return output_->forward(merge_heads(scaled_dot_product(query, keys, values, mask)));
}

}  // namespace transpool
