#include "operators/pooling/successive_halving_kernel.h"

#ifdef TRANSPOOL_CUDA
#include "operators/element_of.h"
#include "operators/flop_formula.h"
#include "operators/pooling/successive_halving_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#endif

namespace transpool {

bool has_successive_halving_kernel([[maybe_unused]] const at::Device& device, [[maybe_unused]] std::int64_t length,
                                   [[maybe_unused]] std::int64_t k) {
#ifdef TRANSPOOL_CUDA
  return device.is_cuda() && (k << tournament_rounds(length, k)) <= longest_tournament_cuda();
#else
  return false;
#endif
}

#ifdef TRANSPOOL_CUDA
namespace {

using Optional = std::optional<at::Tensor>;
using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor>;
using torch::autograd::variable_list;

SuccessiveHalvingArguments arguments_of(const at::Tensor& x, const at::Tensor& scores, const Optional& lengths,
                                        std::int64_t k, double base, double epsilon) {
  SuccessiveHalvingArguments arguments;
  arguments.x = x.const_data_ptr();
  arguments.scores = scores.const_data_ptr();
  arguments.lengths = lengths ? lengths->const_data_ptr<std::int64_t>() : nullptr;
  arguments.batch = x.size(0);
  arguments.length = x.size(1);
  arguments.slots = k;
  arguments.width = x.size(2);
  arguments.rounds = static_cast<int>(tournament_rounds(x.size(1), k));
  arguments.element = element_of(x.scalar_type()).value();
  arguments.float64_scores = scores.scalar_type() == at::kDouble;
  arguments.base = base;
  arguments.epsilon = epsilon;
  return arguments;
}

Optional contiguous(const Optional& tensor) { return tensor ? Optional(tensor->contiguous()) : std::nullopt; }

void check(const char* error) { TORCH_CHECK(error == nullptr, "successive_halving: ", error); }

Outputs forward_cuda(const at::Tensor& given_x, const at::Tensor& given_scores, const Optional& given_lengths,
                     std::int64_t k, double base, bool mirror, bool keep_order, double epsilon) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous(), scores = given_scores.contiguous();
  const auto lengths = contiguous(given_lengths);
  auto a = arguments_of(x, scores, lengths, k, base, epsilon);
  a.mirror = mirror;
  a.keep_order = keep_order;
  const auto index = scores.options().dtype(at::kInt);
  const auto leaves =
      at::empty({a.batch, k, std::int64_t{1} << a.rounds, leaf_bytes(a.element)}, x.options().dtype(at::kByte));
  const auto values = at::empty({a.batch, k, a.width}, x.options());
  const auto slot_scores = at::empty({a.batch, k}, scores.options());
  const auto positions = at::empty({a.batch, k}, index.dtype(at::kLong));
  const auto workspace = at::empty({tournament_workspace(a)}, leaves.options());
  a.workspace = workspace.mutable_data_ptr();
  a.leaves = leaves.mutable_data_ptr();
  a.values = values.mutable_data_ptr();
  a.slot_scores = slot_scores.mutable_data_ptr();
  a.positions = positions.data_ptr<std::int64_t>();
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  check(successive_halving_tournament_cuda(a, stream));
  check(successive_halving_gather_cuda(a, stream));
  return {values, slot_scores, positions, leaves};
}

Gradients backward_cuda(const at::Tensor& values_gradient, const Optional& given_slot_gradient, const at::Tensor& given_x,
                        const at::Tensor& given_scores, const at::Tensor& leaves, double base, double epsilon) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous(), scores = given_scores.contiguous();
  const auto gradient = values_gradient.to(x.scalar_type()).contiguous();
  const auto slot_gradient = contiguous(given_slot_gradient);
  auto a = arguments_of(x, scores, std::nullopt, leaves.size(1), base, epsilon);
  const auto x_gradient = at::empty_like(x), score_gradient = at::empty_like(scores);
  at::Tensor tree;
  if (const auto doubles = tree_workspace(a.rounds); doubles > 0) {
    tree = at::empty({a.batch * a.slots * doubles}, scores.options().dtype(at::kDouble));
    a.tree = tree.data_ptr<double>();
  }
  a.leaves = leaves.data_ptr();
  a.values_gradient = gradient.const_data_ptr();
  a.slot_gradient = slot_gradient ? slot_gradient->const_data_ptr() : nullptr;
  a.x_gradient = x_gradient.mutable_data_ptr();
  a.score_gradient = score_gradient.mutable_data_ptr();
  check(successive_halving_backward_cuda(a, c10::cuda::getCurrentCUDAStream().stream()));
  return {x_gradient, score_gradient};
}

Outputs call_forward(const at::Tensor& x, const at::Tensor& scores, const Optional& lengths, std::int64_t k, double base,
                     bool mirror, bool keep_order, double epsilon) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("transpool::successive_halving", "").typed<decltype(forward_cuda)>();
  return op.call(x, scores, lengths, k, base, mirror, keep_order, epsilon);
}

Gradients call_backward(const at::Tensor& values_gradient, const Optional& slot_gradient, const at::Tensor& x,
                        const at::Tensor& scores, const at::Tensor& leaves, double base, double epsilon) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("transpool::successive_halving_backward", "")
                             .typed<decltype(backward_cuda)>();
  return op.call(values_gradient, slot_gradient, x, scores, leaves, base, epsilon);
}

class SuccessiveHalvingFunction : public torch::autograd::Function<SuccessiveHalvingFunction> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& scores,
                               const Optional& lengths, std::int64_t k, double base, bool mirror, bool keep_order,
                               double epsilon) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [values, slot_scores, positions, leaves] =
        call_forward(x, scores, lengths, k, base, mirror, keep_order, epsilon);
    context->save_for_backward({x, scores, leaves});
    context->saved_data["base"] = base;
    context->saved_data["epsilon"] = epsilon;
    context->set_materialize_grads(false);
    context->mark_non_differentiable({positions});
    return {values, slot_scores, positions};
  }

  static variable_list backward(torch::autograd::AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto& x = saved[0];
    const auto values_gradient =
        gradients[0].defined() ? gradients[0] : at::zeros({x.size(0), saved[2].size(1), x.size(2)}, x.options());
    const auto slot_gradient = gradients[1].defined() ? Optional(gradients[1]) : std::nullopt;
    const auto [x_gradient, score_gradient] =
        call_backward(values_gradient, slot_gradient, x, saved[1], saved[2], context->saved_data["base"].toDouble(),
                      context->saved_data["epsilon"].toDouble());
    return {x_gradient, score_gradient, {}, {}, {}, {}, {}, {}};
  }
};

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def(
      "successive_halving(Tensor x, Tensor scores, Tensor? lengths, int k, float base, bool mirror, bool keep_order,"
      " float epsilon) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "successive_halving_backward(Tensor values_gradient, Tensor? slot_gradient, Tensor x, Tensor scores, Tensor leaves,"
      " float base, float epsilon) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("successive_halving", forward_cuda);
  library.impl("successive_halving_backward", backward_cuda);
}

const RegisterFlopFormula forward_flops("transpool::successive_halving", [](c10::ArrayRef<const c10::IValue> arguments) {
  const auto x = arguments[0].toTensor();
  const auto k = arguments[3].toInt();
  return CallFlops{2.0 * static_cast<double>((x.size(0) * k << tournament_rounds(x.size(1), k)) * x.size(2))};
});
const RegisterFlopFormula backward_flops("transpool::successive_halving_backward",
                                         [](c10::ArrayRef<const c10::IValue> arguments) {
                                           return CallFlops{4.0 * static_cast<double>(arguments[4].toTensor().numel() /
                                                                                      arguments[4].toTensor().size(3) *
                                                                                      arguments[2].toTensor().size(2))};
                                         });

}  // namespace
#endif

Pooled successive_halving_kernel([[maybe_unused]] const at::Tensor& x, [[maybe_unused]] const at::Tensor& scores,
                                 [[maybe_unused]] std::int64_t k, [[maybe_unused]] const std::optional<at::Tensor>& lengths,
                                 [[maybe_unused]] const TournamentOptions& options, [[maybe_unused]] double epsilon) {
#ifdef TRANSPOOL_CUDA
  const auto parts =
      SuccessiveHalvingFunction::apply(x, scores, lengths, k, options.base, options.mirror, options.keep_order, epsilon);
  return {parts[0], parts[1], parts[2]};
#else
  throw Unsupported("successive_halving has no kernel in this build");
#endif
}

}  // namespace transpool
