#include "operators/pooling/pooling.h"
#include "operators/torch_ops.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace transpool {
namespace {

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor>;
using Optional = std::optional<at::Tensor>;

Instances<PoolingVariant>& instances() {
  static Instances<PoolingVariant> all(pooling_registry());
  return all;
}

bool dtypes_fit(const at::Tensor& x, const at::Tensor& scores, const Optional& lengths) {
  return x.is_floating_point() && (scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kDouble) &&
         (!lengths || lengths->scalar_type() == at::kLong);
}

/// Runs the operator where the tensors are; records gradients if autograd does so here.
Results run(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths, std::string_view name,
            std::string_view options, const Optional& seed) {
  return translated(dtypes_fit(x, scores, lengths), [&] {
    const auto instance = instances().get(name, options, seed);
    naming("pooling operator \"" + instance->variant->name + "\"", [&] {
      check_pooling_arguments(x, scores, k, lengths);
      check_lengths_in_range(lengths, x.size(1));
    });
    check_pooling_support(*instance->variant, {x.size(0), x.size(1), x.size(2), k, x.scalar_type()},
                          x.is_cpu() ? "cpu" : "cuda");
    const auto pooled = instance->op->forward(x, scores, k, lengths);
    const auto kept = instance->op->passes_score_gradient() ? pooled.scores : pooled.scores.detach();
    return Results(fresh(pooled.values, {x}), fresh(kept, {scores}), fresh(pooled.positions, {}));
  });
}

Results pool_seeded(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths,
                    std::string_view name, std::string_view options, const Optional& seed) {
  const at::NoGradGuard no_gradient;
  return run(x, scores, k, lengths, name, options, seed);
}

Results pool(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths, std::string_view name,
             std::string_view options) {
  return pool_seeded(x, scores, k, lengths, name, options, std::nullopt);
}

/// Runs the operator again, this time with gradients, so that only its inputs are kept between the passes.
Gradients pool_backward(const at::Tensor& values_gradient, const at::Tensor& scores_gradient, const at::Tensor& x,
                        const at::Tensor& scores, std::int64_t k, const Optional& lengths, std::string_view name,
                        std::string_view options, const Optional& seed) {
  const auto instance = translated(true, [&] { return instances().get(name, options); });
  TORCH_CHECK_VALUE(instance->variant->capabilities.differentiable, "pooling operator \"", name, "\" is not differentiable");
  const RecordingGradients recording;
  const std::vector<at::Tensor> inputs = {x.detach().requires_grad_(), scores.detach().requires_grad_()};
  const auto [values, kept, positions] = run(inputs[0], inputs[1], k, lengths, name, options, seed);
  torch::autograd::variable_list outputs = {values}, given = {values_gradient};
  if (kept.requires_grad()) {
    outputs.push_back(kept);
    given.push_back(scores_gradient);
  }
  auto found = torch::autograd::grad(outputs, inputs, given, std::nullopt, false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < found.size(); ++i)
    found[i] = found[i].defined() ? fresh(found[i], given) : at::zeros_like(inputs[i], at::MemoryFormat::Contiguous);
  return {found[0].detach(), found[1].detach()};
}

Results pool_seeded_meta(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths,
                         std::string_view name, std::string_view options, const Optional&) {
  translated(true, [&] { return instances().get(name, options); });
  TORCH_CHECK_VALUE(x.dim() == 3, "x: ", x.dim(), " dimensions are not allowed; allowed: floating (B, n, d)");
  TORCH_CHECK_VALUE(scores.dim() == 2, "scores: ", scores.dim(), " dimensions are not allowed; allowed: (B, n)");
  TORCH_CHECK_TYPE(dtypes_fit(x, scores, lengths), "dtypes are not allowed; allowed: floating x, float32 or float64 scores,",
                   " int64 lengths");
  TORCH_CHECK_VALUE(k >= 1 && x.sym_size(1) >= k, "k: ", k, " is out of range; allowed: 1 to n = ", x.sym_size(1));
  const c10::SymInt rows = x.sym_size(0);
  return {at::empty_symint({rows, k, x.sym_size(2)}, x.options()), at::empty_symint({rows, k}, scores.options()),
          at::empty_symint({rows, k}, scores.options().dtype(at::kLong))};
}

Results pool_meta(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths,
                  std::string_view name, std::string_view options) {
  return pool_seeded_meta(x, scores, k, lengths, name, options, std::nullopt);
}

Gradients pool_backward_meta(const at::Tensor&, const at::Tensor&, const at::Tensor& x, const at::Tensor& scores,
                             std::int64_t, const Optional&, std::string_view, std::string_view, const Optional&) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(scores.sym_sizes(), scores.options())};
}

Results call_below_autograd(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths,
                            std::string_view name, std::string_view options, const Optional& seed) {
  static const auto plain = find_operator<decltype(pool)>("transpool::pool");
  static const auto seeded = find_operator<decltype(pool_seeded)>("transpool::pool_seeded");
  const at::AutoDispatchBelowADInplaceOrView below;
  return seed ? seeded.call(x, scores, k, lengths, name, options, seed) : plain.call(x, scores, k, lengths, name, options);
}

class PoolFunction : public torch::autograd::Function<PoolFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                                                const at::Tensor& scores, std::int64_t k, const Optional& lengths,
                                                const std::string& name, const std::string& options, const Optional& seed) {
    const auto [values, kept, positions] = call_below_autograd(x, scores, k, lengths, name, options, seed);
    context->save_for_backward({x, scores, lengths.value_or(at::Tensor()), seed.value_or(at::Tensor())});
    context->saved_data["k"] = k;
    context->saved_data["name"] = name;
    context->saved_data["options"] = options;
    const bool passes = translated(true, [&] { return instances().get(name, options); })->op->passes_score_gradient();
    context->saved_data["passes_score_gradient"] = passes;
    if (passes) context->mark_non_differentiable({positions});
    else context->mark_non_differentiable({kept, positions});
    return {values, kept, positions};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    static const auto op = find_operator<decltype(pool_backward)>("transpool::pool_backward");
    const auto saved = context->get_saved_variables();
    const auto given = [](const at::Tensor& tensor) { return tensor.defined() ? Optional(tensor) : std::nullopt; };
    // Where the operator passes no gradient to the scores they get none, not zeros, as in an eager call.
    auto [x, scores] =
        op.call(gradients[0], gradients[1], saved[0], saved[1], context->saved_data["k"].toInt(), given(saved[2]),
                context->saved_data["name"].toStringView(), context->saved_data["options"].toStringView(), given(saved[3]));
    if (!context->saved_data["passes_score_gradient"].toBool()) scores = at::Tensor();
    return {x, scores, {}, {}, {}, {}, {}};
  }
};

/// Eager calls record the operator's own calls, so that nothing is computed twice. Traced calls are one opaque node with one
/// opaque backward node; noise without a seed gets one there, so that both see the same. So are calls of operators
/// without a gradient: their backward node says so.
Results pool_autograd(const at::Tensor& x, const at::Tensor& scores, std::int64_t k, const Optional& lengths,
                      std::string_view name, std::string_view options) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || scores.requires_grad()))
    return call_below_autograd(x, scores, k, lengths, name, options, std::nullopt);
  const auto instance = translated(true, [&] { return instances().get(name, options); });
  if (instance->variant->capabilities.differentiable && !is_traced({x, scores}))
    return run(x, scores, k, lengths, name, options, std::nullopt);
  const auto outputs = PoolFunction::apply(x, scores, k, lengths, std::string(name), std::string(options),
                                           instance->draws() ? Optional(draw_seed()) : std::nullopt);
  return {outputs[0], outputs[1], outputs[2]};
}

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  // Some variants draw from torch's generator: nobody may run such a call twice or merge two of them.
  const std::vector<at::Tag> drawing = {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};
  library.def("pool(Tensor x, Tensor scores, int k, Tensor? lengths, str name, str options) -> (Tensor, Tensor, Tensor)",
              drawing);
  library.def(
      "pool_seeded(Tensor x, Tensor scores, int k, Tensor? lengths, str name, str options, Tensor? seed)"
      " -> (Tensor, Tensor, Tensor)",
      tags);
  library.def(
      "pool_backward(Tensor values_gradient, Tensor scores_gradient, Tensor x, Tensor scores, int k, Tensor? lengths,"
      " str name, str options, Tensor? seed) -> (Tensor, Tensor)",
      tags);
}

void implement(torch::Library& library) {
  library.impl("pool", pool);
  library.impl("pool_seeded", pool_seeded);
  library.impl("pool_backward", pool_backward);
}

TORCH_LIBRARY_IMPL(transpool, CPU, library) { implement(library); }
TORCH_LIBRARY_IMPL(transpool, CUDA, library) { implement(library); }
TORCH_LIBRARY_IMPL(transpool, Meta, library) {
  library.impl("pool", pool_meta);
  library.impl("pool_seeded", pool_seeded_meta);
  library.impl("pool_backward", pool_backward_meta);
}
TORCH_LIBRARY_IMPL(transpool, Autograd, library) {
  library.impl("pool", pool_autograd);
  library.impl("pool_seeded", torch::autograd::autogradNotImplementedFallback());
  library.impl("pool_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace
}  // namespace transpool
