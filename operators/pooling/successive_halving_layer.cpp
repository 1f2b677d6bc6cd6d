#include "operators/pooling/successive_halving_layer.h"

#ifdef TRANSPOOL_CUDA
#include "operators/element_of.h"
#include "operators/flop_formula.h"
#include "operators/pooling/successive_halving_kernel.h"
#include "operators/pooling/successive_halving_layer_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#endif

namespace transpool {

bool has_successive_halving_layer([[maybe_unused]] const at::Device& device, [[maybe_unused]] std::int64_t length,
                                  [[maybe_unused]] std::int64_t width, [[maybe_unused]] std::int64_t k,
                                  [[maybe_unused]] at::ScalarType dtype, [[maybe_unused]] at::ScalarType precision) {
#ifdef TRANSPOOL_CUDA
  const bool less = dtype == at::kFloat && (precision == at::kHalf || precision == at::kBFloat16);
  const auto element = element_of(dtype);
  return element && (precision == dtype || less) && has_successive_halving_kernel(device, length, k) &&
         has_successive_halving_layer_cuda(width, static_cast<int>(tournament_rounds(length, k)), *element);
#else
  return false;
#endif
}

#ifdef TRANSPOOL_CUDA
namespace {

using Optional = std::optional<at::Tensor>;
using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using torch::autograd::variable_list;

SuccessiveHalvingLayerArguments arguments_of(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                             std::int64_t k, double floor, double base, double epsilon) {
  SuccessiveHalvingLayerArguments l;
  auto& a = l.pooling;
  a.x = x.const_data_ptr();
  a.batch = x.size(0);
  a.length = x.size(1);
  a.slots = k;
  a.width = x.size(2);
  a.rounds = static_cast<int>(tournament_rounds(x.size(1), k));
  a.element = element_of(x.scalar_type()).value();
  a.base = base;
  a.epsilon = epsilon;
  l.weight = weight.const_data_ptr();
  l.bias = bias.const_data_ptr();
  l.precision = element_of(weight.scalar_type()).value();
  l.floor = static_cast<float>(floor);
  return l;
}

Optional contiguous(const Optional& tensor) { return tensor ? Optional(tensor->contiguous()) : std::nullopt; }

void check(const char* error) { TORCH_CHECK(error == nullptr, "successive_halving_layer: ", error); }

Outputs forward_cuda(const at::Tensor& given_x, const at::Tensor& given_weight, const at::Tensor& bias,
                     const Optional& given_lengths, std::int64_t k, double floor, double base, bool mirror, bool keep_order,
                     double epsilon) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous(), weight = given_weight.contiguous();
  const auto lengths = contiguous(given_lengths);
  auto l = arguments_of(x, weight, bias, k, floor, base, epsilon);
  auto& a = l.pooling;
  a.lengths = lengths ? lengths->const_data_ptr<std::int64_t>() : nullptr;
  a.mirror = mirror;
  a.keep_order = keep_order;
  const auto real = x.options().dtype(at::kFloat), bytes = x.options().dtype(at::kByte);
  const auto scores = at::empty({a.batch, a.length}, real), slot_scores = at::empty({a.batch, k}, real);
  const auto leaves = at::empty({a.batch, k, std::int64_t{1} << a.rounds, leaf_bytes(a.element)}, bytes);
  const auto values = at::empty({a.batch, k, a.width}, x.options());
  const auto positions = at::empty({a.batch, k}, x.options().dtype(at::kLong));
  const auto workspace = at::empty({tournament_workspace(a)}, bytes);
  l.scores = scores.data_ptr<float>();
  a.scores = scores.const_data_ptr();
  a.workspace = workspace.mutable_data_ptr();
  a.leaves = leaves.mutable_data_ptr();
  a.values = values.mutable_data_ptr();
  a.slot_scores = slot_scores.mutable_data_ptr();
  a.positions = positions.data_ptr<std::int64_t>();
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  check(successive_halving_layer_scores_cuda(l, stream));
  check(successive_halving_tournament_cuda(a, stream));
  check(successive_halving_gather_cuda(a, stream));
  return {values, slot_scores, positions, scores, leaves};
}

/// `dtype`: of the gradients of weight and bias.
Gradients backward_cuda(const at::Tensor& values_gradient, const Optional& given_slot_gradient, const at::Tensor& given_x,
                        const at::Tensor& given_weight, const at::Tensor& bias, const at::Tensor& scores,
                        const at::Tensor& leaves, double floor, double base, double epsilon, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous(), weight = given_weight.contiguous();
  const auto gradient = values_gradient.to(x.scalar_type()).contiguous();
  const auto slot_gradient = contiguous(given_slot_gradient);
  auto l = arguments_of(x, weight, bias, leaves.size(1), floor, base, epsilon);
  auto& a = l.pooling;
  const auto x_gradient = at::empty_like(x);
  const auto weight_gradient = at::empty({a.width}, x.options().dtype(dtype));
  const auto bias_gradient = at::empty({1}, weight_gradient.options());
  a.scores = scores.const_data_ptr();
  a.leaves = leaves.data_ptr();
  a.values_gradient = gradient.const_data_ptr();
  a.slot_gradient = slot_gradient ? slot_gradient->const_data_ptr() : nullptr;
  a.x_gradient = x_gradient.mutable_data_ptr();
  const auto partial =
      at::empty({successive_halving_layer_sums(l), a.width + 1}, x.options().dtype(accumulation_dtype(x.scalar_type())));
  l.partial_sums = partial.mutable_data_ptr();
  l.weight_gradient = weight_gradient.mutable_data_ptr();
  l.bias_gradient = bias_gradient.mutable_data_ptr();
  l.gradient_element = element_of(dtype).value();
  check(successive_halving_layer_backward_cuda(l, c10::cuda::getCurrentCUDAStream().stream()));
  return {x_gradient, weight_gradient, bias_gradient};
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

class SuccessiveHalvingLayerFunction : public torch::autograd::Function<SuccessiveHalvingLayerFunction> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias, const Optional& lengths, at::ScalarType precision, std::int64_t k,
                               double floor, double base, bool mirror, bool keep_order, double epsilon) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_cuda)>("transpool::successive_halving_layer");
    const auto w = weight.to(precision), b = bias.to(precision);
    const auto [values, slot_scores, positions, scores, leaves] =
        op.call(x, w, b, lengths, k, floor, base, mirror, keep_order, epsilon);
    context->save_for_backward({x, w, b, scores, leaves});
    context->saved_data["floor"] = floor;
    context->saved_data["base"] = base;
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["dtype"] = static_cast<std::int64_t>(weight.scalar_type());
    context->set_materialize_grads(false);
    context->mark_non_differentiable({positions, scores});
    return {values, slot_scores, positions, scores};
  }

  static variable_list backward(torch::autograd::AutogradContext* context, const variable_list& gradients) {
    static const auto op = operator_named<decltype(backward_cuda)>("transpool::successive_halving_layer_backward");
    const auto saved = context->get_saved_variables();
    const auto& x = saved[0];
    const auto values_gradient =
        gradients[0].defined() ? gradients[0] : at::zeros({x.size(0), saved[4].size(1), x.size(2)}, x.options());
    const auto slot_gradient = gradients[1].defined() ? Optional(gradients[1]) : std::nullopt;
    auto [x_gradient, weight_gradient, bias_gradient] = op.call(
        values_gradient, slot_gradient, x, saved[1], saved[2], saved[3], saved[4], context->saved_data["floor"].toDouble(),
        context->saved_data["base"].toDouble(), context->saved_data["epsilon"].toDouble(),
        static_cast<at::ScalarType>(context->saved_data["dtype"].toInt()));
    return {x_gradient, weight_gradient, bias_gradient, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def(
      "successive_halving_layer(Tensor x, Tensor weight, Tensor bias, Tensor? lengths, int k, float floor, float base,"
      " bool mirror, bool keep_order, float epsilon) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "successive_halving_layer_backward(Tensor values_gradient, Tensor? slot_gradient, Tensor x, Tensor weight, Tensor "
      "bias,"
      " Tensor scores, Tensor leaves, float floor, float base, float epsilon, ScalarType dtype) -> (Tensor, Tensor, "
      "Tensor)");
}

TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("successive_halving_layer", forward_cuda);
  library.impl("successive_halving_layer_backward", backward_cuda);
}

/// Multiply-accumulates of the scorer's product and of the gather, in one direction.
double products(const at::Tensor& x, std::int64_t k) {
  const auto rows = x.size(0) * x.size(1) + (x.size(0) * k << tournament_rounds(x.size(1), k));
  return static_cast<double>(rows * x.size(2));
}

const RegisterFlopFormula forward_flops("transpool::successive_halving_layer",
                                        [](c10::ArrayRef<const c10::IValue> arguments) {
                                          return CallFlops{2 * products(arguments[0].toTensor(), arguments[4].toInt())};
                                        });
const RegisterFlopFormula backward_flops("transpool::successive_halving_layer_backward",
                                         [](c10::ArrayRef<const c10::IValue> arguments) {
                                           return CallFlops{
                                               4 * products(arguments[2].toTensor(), arguments[6].toTensor().size(1))};
                                         });

}  // namespace
#endif

std::pair<Pooled, at::Tensor> successive_halving_layer([[maybe_unused]] const at::Tensor& x,
                                                       [[maybe_unused]] const LinearScores& scorer,
                                                       [[maybe_unused]] std::int64_t k,
                                                       [[maybe_unused]] const std::optional<at::Tensor>& lengths,
                                                       [[maybe_unused]] const TournamentOptions& options,
                                                       [[maybe_unused]] double epsilon) {
#ifdef TRANSPOOL_CUDA
  const auto parts =
      SuccessiveHalvingLayerFunction::apply(x, scorer.weight, scorer.bias, lengths, scorer.precision, k, scorer.floor,
                                            options.base, options.mirror, options.keep_order, epsilon);
  return {Pooled{parts[0], parts[1], parts[2]}, parts[3]};
#else
  throw Unsupported("successive_halving_layer has no kernel in this build");
#endif
}

}  // namespace transpool
