#include "operators/pooling/relaxed_subset_mixture.h"

#ifdef TRANSPOOL_CUDA
#include "operators/element_of.h"
#include "operators/flop_formula.h"
#include "operators/pooling/mixture.h"
#include "operators/pooling/relaxed_subset_cuda.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#endif

namespace transpool {

#ifdef TRANSPOOL_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Under every real logit, yet finite.
constexpr double floor_logit = -1e300;

/// What the rounds keep, as the dispatcher takes it; see RelaxedSubsetArguments.
struct State {
  at::Tensor degree, frame, columns, shares, coefficients, checkpoints, leads;
};

/// The mixed scores, the row of largest weight, and the state.
using RoundsResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

void check(const char* error) { TORCH_CHECK(error == nullptr, "relaxed_subset: ", error); }

void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

RelaxedSubsetArguments arguments_of(const State& state, double temperature, at::ScalarType dtype) {
  RelaxedSubsetArguments arguments;
  arguments.degree = state.degree.data_ptr<int>();
  arguments.frame = state.frame.data_ptr<double>();
  arguments.columns = state.columns.data_ptr();
  arguments.shares = state.shares.data_ptr<double>();
  arguments.coefficients = state.coefficients.data_ptr();
  arguments.checkpoints = state.checkpoints.data_ptr<double>();
  arguments.leads = state.leads.data_ptr<double>();
  arguments.batch = state.columns.size(0);
  arguments.length = state.columns.size(1);
  arguments.rounds = state.coefficients.size(1);
  arguments.temperature = temperature;
  arguments.element = element_of(dtype).value();
  return arguments;
}

/// a and scores contiguous, scores float64 or float32.
RoundsResult rounds_cuda(const at::Tensor& a, const at::Tensor& scores, std::int64_t rounds, double temperature) {
  const c10::cuda::CUDAGuard guard(a.device());
  const auto batch = a.size(0), n = a.size(1);
  const auto windows = (rounds + relaxed_subset_window - 1) / relaxed_subset_window;
  const auto mixed = at::empty({batch, rounds}, scores.options());
  const auto top = at::empty({batch, rounds}, a.options().dtype(at::kLong));
  const State state{at::empty({batch}, a.options().dtype(at::kInt)),
                    at::empty({batch, relaxed_subset_frame + 2 * relaxed_subset_nodes}, a.options()),
                    at::empty({batch, n, 2}, scores.options()),
                    at::empty({batch, rounds, relaxed_subset_nodes + 1}, a.options()),
                    at::empty({batch, rounds, relaxed_subset_nodes}, scores.options()),
                    at::empty({batch, windows, n}, a.options()),
                    at::empty({3, batch, rounds}, a.options())};
  const auto sums = at::empty({batch, relaxed_subset_parts, 2, relaxed_subset_nodes}, a.options());
  auto arguments = arguments_of(state, temperature, scores.scalar_type());
  arguments.a = a.const_data_ptr<double>();
  arguments.scores = scores.const_data_ptr();
  arguments.mixed = mixed.data_ptr();
  arguments.top = top.data_ptr<std::int64_t>();
  arguments.sums = sums.data_ptr<double>();
  check(relaxed_subset_interpolated_cuda(arguments, stream()));
  check(relaxed_subset_by_column_cuda(arguments, stream()));
  return {mixed,      top, state.degree, state.frame, state.columns, state.shares, state.coefficients, state.checkpoints,
          state.leads};
}

at::Tensor weights_cuda(const at::Tensor& degree, const at::Tensor& frame, const at::Tensor& columns,
                        const at::Tensor& shares, const at::Tensor& coefficients, const at::Tensor& checkpoints,
                        const at::Tensor& leads, double temperature, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(columns.device());
  const auto weights = at::empty({columns.size(0), coefficients.size(1), columns.size(1)}, columns.options().dtype(dtype));
  auto arguments = arguments_of({degree, frame, columns, shares, coefficients, checkpoints, leads}, temperature, dtype);
  arguments.weights = weights.data_ptr();
  check(relaxed_subset_weights_cuda(arguments, stream()));
  return weights;
}

/// Gradients of a and of the scores that are mixed.
std::tuple<at::Tensor, at::Tensor> rounds_backward_cuda(const at::Tensor& given_weights, const at::Tensor& given_mixed,
                                                        const at::Tensor& scores, const at::Tensor& top,
                                                        const at::Tensor& degree, const at::Tensor& frame,
                                                        const at::Tensor& columns, const at::Tensor& shares,
                                                        const at::Tensor& coefficients, const at::Tensor& checkpoints,
                                                        const at::Tensor& leads, double temperature) {
  const c10::cuda::CUDAGuard guard(columns.device());
  const auto weight_gradient = given_weights.contiguous();
  const auto mixed_gradient = given_mixed.to(scores.scalar_type()).contiguous();
  const auto batch = scores.size(0), n = scores.size(1);
  const auto gradient = at::empty({batch, n}, frame.options());
  const auto score_gradient = at::empty_like(scores);
  const auto coefficient_gradient = at::empty_like(coefficients);
  const auto frame_gradient = at::empty({batch, 2, relaxed_subset_nodes}, frame.options());
  const auto log_weights = at::empty({batch, relaxed_subset_window, n}, frame.options());
  auto arguments = arguments_of({degree, frame, columns, shares, coefficients, checkpoints, leads}, temperature,
                                weight_gradient.scalar_type());
  arguments.scores = scores.const_data_ptr();
  arguments.top = top.data_ptr<std::int64_t>();
  arguments.weight_gradient = weight_gradient.const_data_ptr();
  arguments.mixed_gradient = mixed_gradient.const_data_ptr();
  arguments.coefficient_gradient = coefficient_gradient.data_ptr();
  arguments.frame_gradient = frame_gradient.data_ptr<double>();
  arguments.window_log_weights = log_weights.data_ptr<double>();
  arguments.gradient = gradient.data_ptr<double>();
  arguments.score_gradient = score_gradient.data_ptr();
  check(relaxed_subset_interpolated_backward_cuda(arguments, stream()));
  check(relaxed_subset_by_column_backward_cuda(arguments, stream()));
  return {gradient, score_gradient};
}

template <class Kernel>
auto find_kernel(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

at::Tensor weights_of(const State& state, double temperature, at::ScalarType dtype) {
  static const auto op = find_kernel<decltype(weights_cuda)>("transpool::relaxed_subset_weights");
  return op.call(state.degree, state.frame, state.columns, state.shares, state.coefficients, state.checkpoints, state.leads,
                 temperature, dtype);
}

class RelaxedSubsetMixtureFunction : public torch::autograd::Function<RelaxedSubsetMixtureFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scores, const at::Tensor& a,
                               std::int64_t k, const std::optional<at::Tensor>& lengths, double temperature) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_kernel<decltype(rounds_cuda)>("transpool::relaxed_subset_rounds");
    const auto start = lengths ? a.masked_fill(valid_positions(*lengths, a.size(1)).logical_not_(), floor_logit) : a;
    const auto mixing = scores.contiguous();
    const auto [mixed, top, degree, frame, columns, shares, coefficients, checkpoints, leads] =
        op.call(start.contiguous(), mixing, k, temperature);
    const State state{degree, frame, columns, shares, coefficients, checkpoints, leads};
    const auto values = at::bmm(weights_of(state, temperature, x.scalar_type()), without_padding(x, lengths));
    context->save_for_backward(
        {x, lengths.value_or(at::Tensor()), mixing, top, degree, frame, columns, shares, coefficients, checkpoints, leads});
    context->saved_data["temperature"] = temperature;
    context->mark_non_differentiable({top});
    return {values, mixed, top};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto& x = saved[0];
    const auto lengths = saved[1].defined() ? std::optional(saved[1]) : std::nullopt;
    const State state{saved[4], saved[5], saved[6], saved[7], saved[8], saved[9], saved[10]};
    const auto temperature = context->saved_data["temperature"].toDouble();
    at::Tensor x_gradient, a_gradient, score_gradient;
    if (context->needs_input_grad(0)) {
      x_gradient = at::bmm(weights_of(state, temperature, x.scalar_type()).transpose(1, 2), gradients[0]);
      if (lengths) x_gradient.masked_fill_(valid_positions(*lengths, x.size(1)).logical_not_().unsqueeze(2), 0);
    }
    if (context->needs_input_grad(1) || context->needs_input_grad(2)) {
      static const auto op = find_kernel<decltype(rounds_backward_cuda)>("transpool::relaxed_subset_rounds_backward");
      const auto weight_gradient = at::bmm(gradients[0], without_padding(x, lengths).transpose(1, 2));
      std::tie(a_gradient, score_gradient) =
          op.call(weight_gradient, gradients[1], saved[2], saved[3], state.degree, state.frame, state.columns, state.shares,
                  state.coefficients, state.checkpoints, state.leads, temperature);
    }
    return {x_gradient, score_gradient, a_gradient, Variable(), Variable(), Variable()};
  }
};

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def(
      "relaxed_subset_rounds(Tensor a, Tensor scores, int rounds, float temperature)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "relaxed_subset_weights(Tensor degree, Tensor frame, Tensor columns, Tensor shares, Tensor coefficients, Tensor "
      "checkpoints, Tensor leads, float temperature, ScalarType dtype) -> Tensor");
  library.def(
      "relaxed_subset_rounds_backward(Tensor weight_gradient, Tensor mixed_gradient, Tensor scores, Tensor top, Tensor "
      "degree, Tensor frame, Tensor columns, Tensor shares, Tensor coefficients, Tensor checkpoints, Tensor leads, float "
      "temperature) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("relaxed_subset_rounds", rounds_cuda);
  library.impl("relaxed_subset_weights", weights_cuda);
  library.impl("relaxed_subset_rounds_backward", rounds_backward_cuda);
}

/// The rounds give the mixed scores too, without a product.
const RegisterFlopFormula rounds_flops("transpool::relaxed_subset_rounds", [](c10::ArrayRef<const c10::IValue> arguments) {
  return CallFlops{.spared =
                       2 * static_cast<double>(arguments[0].toTensor().numel()) * static_cast<double>(arguments[2].toInt())};
});

}  // namespace
#endif

bool relaxed_subset_runs_on([[maybe_unused]] const at::Device& device) {
#ifdef TRANSPOOL_CUDA
  return device.is_cuda();
#else
  return false;
#endif
}

bool relaxed_subset_mixture_takes([[maybe_unused]] const at::Tensor& x) {
#ifdef TRANSPOOL_CUDA
  return relaxed_subset_runs_on(x.device()) && element_of(x.scalar_type()) && relaxed_subset_fits(x.size(1));
#else
  return false;
#endif
}

Pooled relaxed_subset_mixture([[maybe_unused]] const at::Tensor& x, [[maybe_unused]] const at::Tensor& scores,
                              [[maybe_unused]] const at::Tensor& a, [[maybe_unused]] std::int64_t k,
                              [[maybe_unused]] const std::optional<at::Tensor>& lengths,
                              [[maybe_unused]] double temperature) {
#ifdef TRANSPOOL_CUDA
  // Sums over rows of a half type are float32, over others in their own.
  const auto parts =
      RelaxedSubsetMixtureFunction::apply(x, scores.to(accumulation_dtype(x.scalar_type())), a, k, lengths, temperature);
  return without_absent_outputs({parts[0], parts[1].to(scores.scalar_type()), parts[2]}, lengths);
#else
  throw Unsupported("relaxed_subset has no kernel for device " + x.device().str() + " in this build");
#endif
}

}  // namespace transpool
