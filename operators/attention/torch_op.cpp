#include "operators/attention/attention.h"
#include "operators/torch_ops.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace transpool {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Optional = std::optional<at::Tensor>;

Instances<AttentionVariant>& instances() {
  static Instances<AttentionVariant> all(
      attention_registry(),
      {{.name = "causal", .type = OptionType::boolean, .fallback = false, .meaning = "no query sees a later key"}});
  return all;
}

bool dtypes_fit(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths) {
  return q.is_floating_point() && k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type() &&
         (!lengths || lengths->scalar_type() == at::kLong);
}

void check_dtypes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths) {
  TORCH_CHECK_TYPE(dtypes_fit(q, k, v, lengths), "q, k, v: ", q.scalar_type(), ", ", k.scalar_type(), ", ", v.scalar_type(),
                   lengths ? " with lengths of " : "", lengths ? c10::toString(lengths->scalar_type()) : "",
                   " are not allowed; allowed: one floating dtype, int64 lengths");
}

/// Whether the rows of all heads stand together in q (B, h, n, e), as in a view of (B, n, h, e). The output is laid out the
/// same way, since that is what most operators give and what a layer goes on with.
bool heads_innermost(const at::Tensor& q) { return q.sym_stride(1).sym_lt(q.sym_stride(2)).guard_bool(__FILE__, __LINE__); }

/// The output in that layout, without a copy where it is so and shares no memory with an input.
at::Tensor laid_out(const at::Tensor& out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  if (!heads_innermost(q)) return fresh(out, {q, k, v});
  return fresh(out.transpose(1, 2), {q, k, v}).transpose(1, 2);
}

/// Runs the operator where the tensors are; records gradients if autograd does so here.
at::Tensor run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths, std::string_view name,
               std::string_view options, const Optional& seed) {
  check_dtypes(q, k, v, lengths);
  return translated(true, [&] {
    const auto instance = instances().get(name, options, seed);
    const AttentionMask mask{lengths, instance->call.flag("causal")};
    naming("attention operator \"" + instance->variant->name + "\"", [&] {
      check_attention_arguments(q, k, v, mask);
      check_lengths_in_range(lengths, k.size(2));
    });
    check_attention_support(
        *instance->variant,
        {q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), mask.causal, lengths.has_value(), q.scalar_type()},
        q.is_cpu() ? "cpu" : "cuda");
    return laid_out(instance->op->forward(q, k, v, mask), q, k, v);
  });
}

at::Tensor attend_seeded(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths,
                         std::string_view name, std::string_view options, const Optional& seed) {
  const at::NoGradGuard no_gradient;
  return run(q, k, v, lengths, name, options, seed);
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths,
                  std::string_view name, std::string_view options) {
  return attend_seeded(q, k, v, lengths, name, options, std::nullopt);
}

/// Runs the operator again, this time with gradients, so that only its inputs are kept between the passes.
Gradients attend_backward(const at::Tensor& out_gradient, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Optional& lengths, std::string_view name, std::string_view options, const Optional& seed) {
  const auto instance = translated(true, [&] { return instances().get(name, options); });
  TORCH_CHECK_VALUE(instance->variant->capabilities.differentiable, "attention operator \"", name,
                    "\" is not differentiable");
  const RecordingGradients recording;
  std::vector<at::Tensor> inputs;
  for (const auto& input : {q, k, v}) inputs.push_back(input.detach().requires_grad_());
  const auto out = run(inputs[0], inputs[1], inputs[2], lengths, name, options, seed);
  auto found = torch::autograd::grad({out}, inputs, {out_gradient}, std::nullopt, false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < found.size(); ++i)
    found[i] =
        found[i].defined() ? fresh(found[i], {out_gradient}) : at::zeros_like(inputs[i], at::MemoryFormat::Contiguous);
  return {found[0].detach(), found[1].detach(), found[2].detach()};
}

at::Tensor attend_seeded_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths,
                              std::string_view name, std::string_view options, const Optional&) {
  translated(true, [&] { return instances().get(name, options); });
  for (const auto& tensor : {q, k, v})
    TORCH_CHECK_VALUE(tensor.dim() == 4, "q, k, v: ", tensor.dim(), " dimensions are not allowed; allowed: (B, h, n, e)");
  check_dtypes(q, k, v, lengths);
  const auto batch = q.sym_size(0), heads = q.sym_size(1), rows = q.sym_size(2), width = v.sym_size(3);
  if (!heads_innermost(q)) return at::empty_symint({batch, heads, rows, width}, q.options());
  return at::empty_symint({batch, rows, heads, width}, q.options()).transpose(1, 2);
}

at::Tensor attend_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths,
                       std::string_view name, std::string_view options) {
  return attend_seeded_meta(q, k, v, lengths, name, options, std::nullopt);
}

Gradients attend_backward_meta(const at::Tensor&, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const Optional&, std::string_view, std::string_view, const Optional&) {
  const auto like = [](const at::Tensor& tensor) { return at::empty_symint(tensor.sym_sizes(), tensor.options()); };
  return {like(q), like(k), like(v)};
}

at::Tensor call_below_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths,
                               std::string_view name, std::string_view options, const Optional& seed) {
  static const auto plain = find_operator<decltype(attend)>("transpool::attend");
  static const auto seeded = find_operator<decltype(attend_seeded)>("transpool::attend_seeded");
  const at::AutoDispatchBelowADInplaceOrView below;
  return seed ? seeded.call(q, k, v, lengths, name, options, seed) : plain.call(q, k, v, lengths, name, options);
}

class AttendFunction : public torch::autograd::Function<AttendFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const Optional& lengths, const std::string& name,
                            const std::string& options, const Optional& seed) {
    context->save_for_backward({q, k, v, lengths.value_or(at::Tensor()), seed.value_or(at::Tensor())});
    context->saved_data["name"] = name;
    context->saved_data["options"] = options;
    return call_below_autograd(q, k, v, lengths, name, options, seed);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    static const auto op = find_operator<decltype(attend_backward)>("transpool::attend_backward");
    const auto saved = context->get_saved_variables();
    const auto given = [](const at::Tensor& tensor) { return tensor.defined() ? Optional(tensor) : std::nullopt; };
    const auto [q, k, v] =
        op.call(gradients[0], saved[0], saved[1], saved[2], given(saved[3]), context->saved_data["name"].toStringView(),
                context->saved_data["options"].toStringView(), given(saved[4]));
    return {q, k, v, {}, {}, {}, {}};
  }
};

/// As for pooling: eager calls record the operator's own calls, traced ones are one opaque node with its backward node.
at::Tensor attend_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& lengths,
                           std::string_view name, std::string_view options) {
  if (!at::GradMode::is_enabled() || !(q.requires_grad() || k.requires_grad() || v.requires_grad()))
    return call_below_autograd(q, k, v, lengths, name, options, std::nullopt);
  const auto instance = translated(true, [&] { return instances().get(name, options); });
  if (instance->variant->capabilities.differentiable && !is_traced({q, k, v}))
    return run(q, k, v, lengths, name, options, std::nullopt);
  return AttendFunction::apply(q, k, v, lengths, std::string(name), std::string(options),
                               instance->draws() ? Optional(draw_seed()) : std::nullopt);
}

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  // Some variants draw from torch's generator: nobody may run such a call twice or merge two of them.
  const std::vector<at::Tag> drawing = {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};
  library.def("attend(Tensor q, Tensor k, Tensor v, Tensor? lengths, str name, str options) -> Tensor", drawing);
  library.def("attend_seeded(Tensor q, Tensor k, Tensor v, Tensor? lengths, str name, str options, Tensor? seed) -> Tensor",
              tags);
  library.def(
      "attend_backward(Tensor out_gradient, Tensor q, Tensor k, Tensor v, Tensor? lengths, str name, str options,"
      " Tensor? seed) -> (Tensor, Tensor, Tensor)",
      tags);
}

void implement(torch::Library& library) {
  library.impl("attend", attend);
  library.impl("attend_seeded", attend_seeded);
  library.impl("attend_backward", attend_backward);
}

TORCH_LIBRARY_IMPL(transpool, CPU, library) { implement(library); }
TORCH_LIBRARY_IMPL(transpool, CUDA, library) { implement(library); }
TORCH_LIBRARY_IMPL(transpool, Meta, library) {
  library.impl("attend", attend_meta);
  library.impl("attend_seeded", attend_seeded_meta);
  library.impl("attend_backward", attend_backward_meta);
}
TORCH_LIBRARY_IMPL(transpool, Autograd, library) {
  library.impl("attend", attend_autograd);
  library.impl("attend_seeded", torch::autograd::autogradNotImplementedFallback());
  library.impl("attend_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace
}  // namespace transpool
