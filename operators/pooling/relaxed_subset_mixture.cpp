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

/// The mixed scores, the row of largest weight, the moments of x, and the state.
using RoundsResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                at::Tensor, at::Tensor, at::Tensor>;

void check(const char* error) { TORCH_CHECK(error == nullptr, "relaxed_subset: ", error); }

void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

/// x contiguous.
RelaxedSubsetArguments arguments_of(const at::Tensor& x, const State& state, double temperature) {
  RelaxedSubsetArguments arguments;
  arguments.x = x.const_data_ptr();
  arguments.degree = state.degree.data_ptr<int>();
  arguments.frame = state.frame.data_ptr<double>();
  arguments.columns = state.columns.data_ptr();
  arguments.shares = state.shares.data_ptr<double>();
  arguments.coefficients = state.coefficients.data_ptr();
  arguments.checkpoints = state.checkpoints.data_ptr<double>();
  arguments.leads = state.leads.data_ptr<double>();
  arguments.batch = x.size(0);
  arguments.length = x.size(1);
  arguments.width = x.size(2);
  arguments.stride = relaxed_subset_stride(x.size(2));
  arguments.rounds = state.coefficients.size(1);
  arguments.temperature = temperature;
  arguments.element = element_of(x.scalar_type()).value();
  return arguments;
}

at::Tensor partial_moments(const RelaxedSubsetArguments& arguments, bool rounds, const at::TensorOptions& options) {
  return at::empty({relaxed_subset_partial_moments(arguments, rounds)}, options);
}

/// a and scores contiguous, scores float64 or float32.
RoundsResult rounds_cuda(const at::Tensor& given_x, const at::Tensor& a, const at::Tensor& scores, std::int64_t rounds,
                         double temperature) {
  const c10::cuda::CUDAGuard guard(a.device());
  const auto x = given_x.contiguous();
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
  auto arguments = arguments_of(x, state, temperature);
  const auto row_moments = at::empty({batch, relaxed_subset_nodes, arguments.stride}, scores.options());
  const auto sums = at::empty({batch, relaxed_subset_parts, 2, relaxed_subset_nodes}, a.options());
  const auto partial = partial_moments(arguments, /*rounds=*/false, scores.options());
  arguments.a = a.const_data_ptr<double>();
  arguments.scores = scores.const_data_ptr();
  arguments.mixed = mixed.data_ptr();
  arguments.top = top.data_ptr<std::int64_t>();
  arguments.row_moments = row_moments.data_ptr();
  arguments.sums = sums.data_ptr<double>();
  arguments.partial_moments = partial.data_ptr();
  check(relaxed_subset_interpolated_cuda(arguments, stream()));
  check(relaxed_subset_row_moments_cuda(arguments, stream()));
  check(relaxed_subset_by_column_cuda(arguments, stream()));
  return {mixed,         top,          row_moments,        state.degree,      state.frame,
          state.columns, state.shares, state.coefficients, state.checkpoints, state.leads};
}

at::Tensor values_cuda(const at::Tensor& given_x, const at::Tensor& row_moments, const at::Tensor& degree,
                       const at::Tensor& frame, const at::Tensor& columns, const at::Tensor& shares,
                       const at::Tensor& coefficients, const at::Tensor& checkpoints, const at::Tensor& leads,
                       double temperature) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous();
  auto arguments = arguments_of(x, {degree, frame, columns, shares, coefficients, checkpoints, leads}, temperature);
  const auto values = at::empty({arguments.batch, arguments.rounds, arguments.width}, x.options());
  // Memory that only batch rows of degree 0 touch; which those are the device alone knows.
  const auto weights = at::empty({arguments.batch, arguments.rounds, arguments.length}, x.options());
  arguments.row_moments = row_moments.data_ptr();
  arguments.values = values.data_ptr();
  arguments.weights = weights.data_ptr();
  check(relaxed_subset_series_values_cuda(arguments, stream()));
  check(relaxed_subset_weights_cuda(arguments, stream()));
  check(relaxed_subset_values_cuda(arguments, stream()));
  return values;
}

void launch_backward(const RelaxedSubsetArguments& arguments, bool of_x, bool of_scores) {
  check(relaxed_subset_round_moments_cuda(arguments, stream()));
  if (of_scores) check(relaxed_subset_interpolated_backward_cuda(arguments, stream()));
  check(relaxed_subset_series_backward_cuda(arguments, /*beside_rounds=*/of_scores, stream()));
  if (of_scores) check(relaxed_subset_column_gradient_cuda(arguments, stream()));
  if (of_x) {
    check(relaxed_subset_weights_cuda(arguments, stream()));
    check(relaxed_subset_x_gradient_cuda(arguments, stream()));
  }
  if (of_scores) {
    check(relaxed_subset_weight_gradient_cuda(arguments, stream()));
    check(relaxed_subset_by_column_backward_cuda(arguments, stream()));
  }
}

/// Gradients of x, of a and of the scores that are mixed; empty where they are not wanted.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& given_values, const at::Tensor& given_mixed, const at::Tensor& given_x, const at::Tensor& scores,
    const at::Tensor& top, const at::Tensor& row_moments, const at::Tensor& degree, const at::Tensor& frame,
    const at::Tensor& columns, const at::Tensor& shares, const at::Tensor& coefficients, const at::Tensor& checkpoints,
    const at::Tensor& leads, double temperature, bool of_x, bool of_scores) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous();
  const auto values_gradient = given_values.to(x.scalar_type()).contiguous();
  const auto mixed_gradient = given_mixed.to(scores.scalar_type()).contiguous();
  auto arguments = arguments_of(x, {degree, frame, columns, shares, coefficients, checkpoints, leads}, temperature);
  const auto batch = arguments.batch, n = arguments.length, rounds = arguments.rounds;
  const auto of = [](bool wanted, at::IntArrayRef sizes, const at::TensorOptions& options) {
    return wanted ? at::empty(sizes, options) : at::empty({0}, options);
  };
  const auto x_gradient = of(of_x, x.sizes(), x.options());
  const auto gradient = of(of_scores, scores.sizes(), frame.options());
  const auto score_gradient = of(of_scores, scores.sizes(), scores.options());
  const auto round_moments = at::empty_like(row_moments);
  const auto partial = partial_moments(arguments, /*rounds=*/true, scores.options());
  const auto dots = of(of_scores, {batch, relaxed_subset_nodes, n}, scores.options());
  const auto coefficient_gradient = of(of_scores, coefficients.sizes(), coefficients.options());
  const auto frame_gradient = of(of_scores, {batch, 2, relaxed_subset_nodes}, frame.options());
  // Memory that only batch rows of degree 0 touch: first for the weights, then for their gradient.
  const auto weights = at::empty({batch, rounds, n}, x.options());
  const auto log_weights = of(of_scores, {batch, relaxed_subset_window, n}, frame.options());
  arguments.scores = scores.const_data_ptr();
  arguments.top = top.data_ptr<std::int64_t>();
  arguments.row_moments = row_moments.data_ptr();
  arguments.values_gradient = values_gradient.const_data_ptr();
  arguments.mixed_gradient = mixed_gradient.const_data_ptr();
  arguments.x_gradient = of_x ? x_gradient.data_ptr() : nullptr;
  arguments.round_moments = round_moments.data_ptr();
  arguments.partial_moments = partial.data_ptr();
  arguments.polynomial_dots = of_scores ? dots.data_ptr() : nullptr;
  arguments.coefficient_gradient = of_scores ? coefficient_gradient.data_ptr() : nullptr;
  arguments.frame_gradient = frame_gradient.data_ptr<double>();
  arguments.weights = arguments.weight_gradient = weights.data_ptr();
  arguments.window_log_weights = log_weights.data_ptr<double>();
  arguments.gradient = gradient.data_ptr<double>();
  arguments.score_gradient = score_gradient.data_ptr();
  launch_backward(arguments, of_x, of_scores);
  return {x_gradient, gradient, score_gradient};
}

template <class Kernel>
auto find_kernel(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

class RelaxedSubsetMixtureFunction : public torch::autograd::Function<RelaxedSubsetMixtureFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scores, const at::Tensor& a,
                               std::int64_t k, const std::optional<at::Tensor>& lengths, double temperature) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto run = find_kernel<decltype(rounds_cuda)>("transpool::relaxed_subset_rounds");
    static const auto mix = find_kernel<decltype(values_cuda)>("transpool::relaxed_subset_values");
    const auto start = lengths ? a.masked_fill(valid_positions(*lengths, a.size(1)).logical_not_(), floor_logit) : a;
    const auto mixing = scores.contiguous();
    const auto [mixed, top, moments, degree, frame, columns, shares, coefficients, checkpoints, leads] =
        run.call(x, start.contiguous(), mixing, k, temperature);
    const auto values = mix.call(x, moments, degree, frame, columns, shares, coefficients, checkpoints, leads, temperature);
    context->save_for_backward({x, mixing, top, moments, degree, frame, columns, shares, coefficients, checkpoints, leads});
    context->saved_data["temperature"] = temperature;
    context->mark_non_differentiable({top});
    return {values, mixed, top};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    static const auto op = find_kernel<decltype(backward_cuda)>("transpool::relaxed_subset_backward");
    const auto saved = context->get_saved_variables();
    const bool of_x = context->needs_input_grad(0);
    const bool of_scores = context->needs_input_grad(1) || context->needs_input_grad(2);
    const auto [x_gradient, a_gradient, score_gradient] =
        op.call(gradients[0], gradients[1], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], saved[7],
                saved[8], saved[9], saved[10], context->saved_data["temperature"].toDouble(), of_x, of_scores);
    const auto given = [](bool wanted, const at::Tensor& gradient) { return wanted ? gradient : at::Tensor(); };
    return {given(of_x, x_gradient),
            given(of_scores, score_gradient),
            given(of_scores, a_gradient),
            Variable(),
            Variable(),
            Variable()};
  }
};

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def(
      "relaxed_subset_rounds(Tensor x, Tensor a, Tensor scores, int rounds, float temperature)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "relaxed_subset_values(Tensor x, Tensor row_moments, Tensor degree, Tensor frame, Tensor columns, Tensor shares, "
      "Tensor coefficients, Tensor checkpoints, Tensor leads, float temperature) -> Tensor");
  library.def(
      "relaxed_subset_backward(Tensor values_gradient, Tensor mixed_gradient, Tensor x, Tensor scores, Tensor top, Tensor "
      "row_moments, Tensor degree, Tensor frame, Tensor columns, Tensor shares, Tensor coefficients, Tensor checkpoints, "
      "Tensor leads, float temperature, bool of_x, bool of_scores) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("relaxed_subset_rounds", rounds_cuda);
  library.impl("relaxed_subset_values", values_cuda);
  library.impl("relaxed_subset_backward", backward_cuda);
}

/// FLOPs of products of (batch, rows, width) with series of all nodes, in place of `stands_for`. Which batch rows have
/// series the device alone knows.
CallFlops series_flops(const at::Tensor& x, double rows, double products, double stands_for) {
  const double total = products * 2 * static_cast<double>(x.size(0) * relaxed_subset_nodes * x.size(2)) * rows;
  return {.total = total, .spared = stands_for - total};
}

/// 2 B n k.
double pair_flops(const at::Tensor& x, std::int64_t rounds) {
  return 2 * static_cast<double>(x.size(0) * x.size(1)) * static_cast<double>(rounds);
}

/// The rounds give the mixed scores too, without a product.
const RegisterFlopFormula rounds_flops("transpool::relaxed_subset_rounds", [](c10::ArrayRef<const c10::IValue> arguments) {
  const auto& x = arguments[0].toTensor();
  return series_flops(x, static_cast<double>(x.size(1)), 1, pair_flops(x, arguments[3].toInt()));
});
const RegisterFlopFormula values_flops("transpool::relaxed_subset_values", [](c10::ArrayRef<const c10::IValue> arguments) {
  const auto& x = arguments[0].toTensor();
  const auto rounds = arguments[6].toTensor().size(1);
  return series_flops(x, static_cast<double>(rounds), 1, pair_flops(x, rounds) * static_cast<double>(x.size(2)));
});
CallFlops backward_flops(c10::ArrayRef<const c10::IValue> arguments) {
  const auto& x = arguments[2].toTensor();
  const auto rounds = arguments[10].toTensor().size(1);
  const double wanted = (arguments[14].toBool() ? 1 : 0) + (arguments[15].toBool() ? 1 : 0);
  return series_flops(x, static_cast<double>(x.size(1) + rounds), wanted,
                      wanted * pair_flops(x, rounds) * static_cast<double>(x.size(2)));
}
const RegisterFlopFormula register_backward_flops("transpool::relaxed_subset_backward", backward_flops);

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
  return relaxed_subset_runs_on(x.device()) && element_of(x.scalar_type()) && relaxed_subset_fits(x.size(1)) &&
         x.size(2) > 0;
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
