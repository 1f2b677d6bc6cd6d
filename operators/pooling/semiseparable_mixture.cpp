#include "operators/pooling/semiseparable_mixture.h"

#include "operators/flop_formula.h"
#include "operators/pooling/mixture.h"
#include "operators/pooling/selection.h"
#include "operators/pooling/semiseparable_mixture_cpu.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#ifdef TRANSPOOL_CUDA
#include "operators/element_of.h"
#include "operators/pooling/ranking.h"
#include "operators/pooling/semiseparable_mixture_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

using State = SemiseparableState;
using enum SemiseparableState::Scalar;

#ifdef TRANSPOOL_CUDA

void check(const char* error) { TORCH_CHECK(error == nullptr, "semiseparable_mixture: ", error); }

void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

/// x, scores and lengths contiguous.
SemiseparableArguments arguments_of(const at::Tensor& x, const at::Tensor& scores, const std::optional<at::Tensor>& lengths,
                                    const State& state, double sharpness, bool two_sided) {
  SemiseparableArguments a;
  a.x = x.const_data_ptr();
  a.scores = scores.const_data_ptr();
  a.lengths = lengths ? lengths->const_data_ptr<std::int64_t>() : nullptr;
  a.batch = x.size(0);
  a.length = x.size(1);
  a.slots = state.top.size(1);
  a.width = x.size(2);
  a.sharpness = sharpness;
  a.bound = score_bound;
  a.two_sided = two_sided;
  a.element = element_of(x.scalar_type()).value();
  a.clean = state.clean.data_ptr();
  a.top = state.top.data_ptr<std::int32_t>();
  a.rank = state.rank.data_ptr<std::int32_t>();
  a.decay = state.scalars[decay].data_ptr();
  a.scale = state.scalars[scale].data_ptr();
  a.tilt = state.scalars[tilt].data_ptr();
  a.score_slope = state.scalars[score_slope].data_ptr();
  a.mean = state.mean.numel() > 0 ? state.mean.data_ptr() : nullptr;
  a.slope = state.slope.numel() > 0 ? state.slope.data_ptr() : nullptr;
  return a;
}

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

/// Past the sizes that one block ranks, by a sort.
void rank_by_sorting(const at::Tensor& scores, const std::optional<at::Tensor>& lengths, const State& state) {
  const auto k = state.top.size(1);
  state.clean.copy_(clean_scores(scores, lengths));
  const auto ranking = rank_scores(state.clean, lengths);
  state.top.copy_(ranking.order.narrow(1, 0, k));
  state.rank.copy_(ranking.ranks.masked_fill(ranking.ranks >= k, -1));
  if (lengths) state.rank.masked_fill_(valid_positions(*lengths, scores.size(1)).logical_not_(), -2);
}

SemiseparableResult forward_cuda(const at::Tensor& given_x, const at::Tensor& given_scores, std::int64_t k,
                                 const std::optional<at::Tensor>& given_lengths, double sharpness, bool two_sided,
                                 bool keep) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous(), scores = given_scores.contiguous();
  const auto lengths = contiguous(given_lengths);
  const auto batch = x.size(0), n = x.size(1), width = x.size(2);
  const auto index = scores.options().dtype(at::kInt);
  const auto values = at::empty({batch, k, width}, x.options());
  const bool rounded = x.scalar_type() != scores.scalar_type();
  const std::vector<std::int64_t> kept_size = {batch, k, width};
  const auto nothing = at::empty({0}, scores.options());
  const State state{at::empty({batch, n}, scores.options()),
                    at::empty({batch, k}, index),
                    at::empty({batch, n}, index),
                    at::empty({scalar_count, batch, k}, scores.options()),
                    !rounded            ? values
                    : keep || two_sided ? at::empty(kept_size, scores.options())
                                        : nothing,
                    two_sided ? at::empty(kept_size, scores.options()) : nothing};
  auto a = arguments_of(x, scores, lengths, state, sharpness, two_sided);
  const auto mixed = at::empty({batch, k}, scores.options());
  const auto positions = at::empty({batch, k}, index.dtype(at::kLong));
  a.splits = semiseparable_splits(batch, n);
  const auto rest = at::empty({batch, a.splits, 2, width}, scores.options());
  a.values = values.data_ptr();
  a.mixed_scores = mixed.data_ptr();
  a.positions = positions.data_ptr<std::int64_t>();
  a.rest = rest.data_ptr();
  if (semiseparable_ranks(n, k)) check(semiseparable_rank_cuda(a, stream()));
  else rank_by_sorting(scores, lengths, state);
  check(semiseparable_forward_cuda(a, stream()));
  return {values,     mixed, positions, state.clean, state.top, state.rank, state.scalars, rounded ? state.mean : nothing,
          state.slope};
}

/// Gradients of one set of columns and of the scores that weigh them.
std::tuple<at::Tensor, at::Tensor> backward_cuda(const at::Tensor& given_gradient, const at::Tensor& given_x,
                                                 const at::Tensor& given_scores,
                                                 const std::optional<at::Tensor>& given_lengths, const at::Tensor& clean,
                                                 const at::Tensor& top, const at::Tensor& rank, const at::Tensor& scalars,
                                                 const at::Tensor& mean, const at::Tensor& slope, double sharpness,
                                                 bool two_sided) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const auto x = given_x.contiguous(), scores = given_scores.contiguous();
  const auto gradient = given_gradient.to(x.scalar_type()).contiguous();
  const auto lengths = contiguous(given_lengths);
  auto a = arguments_of(x, scores, lengths, {clean, top, rank, scalars, mean, slope}, sharpness, two_sided);
  const auto x_gradient = at::empty_like(x);
  const auto score_gradient = at::empty_like(scores);
  const auto slabs = semiseparable_slabs(a.width);
  const auto flow = at::empty({two_sided ? a.batch : 0, a.slots, a.width}, scores.options());
  const auto dots = at::empty({a.batch, slabs, a.slots}, scores.options());
  const auto last_flow = at::empty({a.batch, 2, a.width}, scores.options());
  const auto last_dot = at::empty({a.batch, slabs, 2}, scores.options());
  a.gradient = gradient.const_data_ptr();
  a.x_gradient = x_gradient.data_ptr();
  a.score_gradient = score_gradient.data_ptr();
  a.flow = flow.data_ptr();
  a.dots = dots.data_ptr();
  a.last_flow = last_flow.data_ptr();
  a.last_dot = last_dot.data_ptr();
  check(semiseparable_backward_cuda(a, stream()));
  return {x_gradient, score_gradient};
}

#endif

template <class Kernel>
auto find_kernel(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

class SemiseparableFunction : public torch::autograd::Function<SemiseparableFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                               const std::optional<at::Tensor>& lengths, double sharpness, bool two_sided, bool keep) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_kernel<decltype(semiseparable_forward_cpu)>("transpool::semiseparable_mixture");
    const auto [values, mixed, positions, clean, top, rank, scalars, mean, slope] =
        op.call(x, scores, k, lengths, sharpness, two_sided, keep);
    if (keep)
      context->save_for_backward(
          {x, scores, lengths.value_or(at::Tensor()), values, mixed, clean, top, rank, scalars, mean, slope});
    context->saved_data["sharpness"] = sharpness;
    context->saved_data["two_sided"] = two_sided;
    context->set_materialize_grads(false);
    context->mark_non_differentiable({positions});
    return {values, mixed, positions};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto& x = saved[0];
    const auto& scores = saved[1];
    const auto lengths = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const State state{saved[5], saved[6], saved[7], saved[8], saved[9].numel() > 0 ? saved[9] : saved[3], saved[10]};
    const auto sharpness = context->saved_data["sharpness"].toDouble();
    const auto two_sided = context->saved_data["two_sided"].toBool();
    static const auto op = find_kernel<decltype(semiseparable_backward_cpu)>("transpool::semiseparable_mixture_backward");
    at::Tensor x_gradient, score_gradient;
    if (gradients[0].defined())
      std::tie(x_gradient, score_gradient) = op.call(gradients[0], x, scores, lengths, state.clean, state.top, state.rank,
                                                     state.scalars, state.mean, state.slope, sharpness, two_sided);
    if (gradients[1].defined()) {
      // The mixed scores are one more column, whose rows are the scores themselves.
      auto [own, weighing] =
          op.call(gradients[1].unsqueeze(2), state.clean.unsqueeze(2), scores, lengths, state.clean, state.top, state.rank,
                  state.scalars, saved[4].unsqueeze(2), state.scalars[score_slope].unsqueeze(2), sharpness, two_sided);
      const auto mixing = at::where(scores.abs() <= score_bound, own.squeeze(2), 0).add_(weighing);
      score_gradient = score_gradient.defined() ? score_gradient.add_(mixing) : mixing;
    }
    return {x_gradient, score_gradient, Variable(), Variable(), Variable(), Variable(), Variable()};
  }
};

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def(
      "semiseparable_mixture(Tensor x, Tensor scores, int k, Tensor? lengths, float sharpness, bool two_sided, bool keep)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "semiseparable_mixture_backward(Tensor gradient, Tensor x, Tensor scores, Tensor? lengths, Tensor clean, Tensor top, "
      "Tensor rank, Tensor scalars, Tensor mean, Tensor slope, float sharpness, bool two_sided) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(transpool, CPU, library) {
  library.impl("semiseparable_mixture", semiseparable_forward_cpu);
  library.impl("semiseparable_mixture_backward", semiseparable_backward_cpu);
}

#ifdef TRANSPOOL_CUDA
TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("semiseparable_mixture", forward_cuda);
  library.impl("semiseparable_mixture_backward", backward_cuda);
}
#endif

/// A pass over the rows takes each past the top once and each of the top once a side, where the product with the weights
/// (values and, forward, scores) takes all for every output.
CallFlops pass_flops(const at::Tensor& x, std::int64_t k, bool two_sided, bool forward) {
  const auto passes = forward ? 1.0 : 2.0;
  const auto batch = static_cast<double>(x.size(0)), n = static_cast<double>(x.size(1));
  const auto width = static_cast<double>(x.size(2)), outputs = static_cast<double>(k);
  const double total = passes * 2 * batch * (n + (two_sided ? outputs : 0)) * width;
  return {.total = total, .spared = passes * 2 * batch * n * outputs * (width + (forward ? 1 : 0)) - total};
}

const RegisterFlopFormula forward_flops("transpool::semiseparable_mixture", [](c10::ArrayRef<const c10::IValue> arguments) {
  return pass_flops(arguments[0].toTensor(), arguments[2].toInt(), arguments[5].toBool(), /*forward=*/true);
});
const RegisterFlopFormula backward_flops("transpool::semiseparable_mixture_backward",
                                         [](c10::ArrayRef<const c10::IValue> arguments) {
                                           return pass_flops(arguments[1].toTensor(), arguments[5].toTensor().size(1),
                                                             arguments[11].toBool(), /*forward=*/false);
                                         });

}  // namespace

std::string semiseparable_backend(const at::Device& device) {
  if (device.is_cpu()) return "cpu";
#ifdef TRANSPOOL_CUDA
  if (device.is_cuda()) return "cuda";
#endif
  return "aten";
}

bool semiseparable_takes(const at::Tensor& x, const at::Tensor& scores) {
  return semiseparable_backend(x.device()) != "aten" && scores.scalar_type() == accumulation_dtype(x.scalar_type());
}

Pooled semiseparable_mixture(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                             const std::optional<at::Tensor>& lengths, const SemiseparableOptions& options) {
  const bool keep = at::GradMode::is_enabled() && (x.requires_grad() || scores.requires_grad());
  const auto parts = SemiseparableFunction::apply(x, scores, k, lengths, options.sharpness, options.two_sided, keep);
  return {parts[0], parts[1], parts[2]};
}

Cost semiseparable_cost(const PoolingShape& shape, bool two_sided) {
  // The scores as they were ranked, with the rank of each; the top, five numbers of each output and its values and slope
  // before they are rounded.
  auto cost = mixture_cost(shape, /*kept_weights=*/0);
  const auto score = static_cast<double>(score_bytes(shape.dtype));
  const auto rows = static_cast<double>(shape.batch * shape.length);
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  const bool rounded = shape.dtype != at::kFloat && shape.dtype != at::kDouble;
  const auto kept_values = outputs * static_cast<double>(shape.width) * score * ((rounded ? 1 : 0) + (two_sided ? 1 : 0));
  cost.activation_bytes = cost.bytes_written + rows * (score + sizeof(std::int32_t)) +
                          outputs * (static_cast<double>(scalar_count) * score + sizeof(std::int32_t)) + kept_values;
  return cost;
}

}  // namespace transpool
