#include "operators/pooling/kept_rows.h"

#ifdef TRANSPOOL_CUDA
#include "operators/element_of.h"
#include "operators/pooling/row_gather_cuda.h"
#include "operators/pooling/selection.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#endif

namespace transpool {

#ifdef TRANSPOOL_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

void check(const char* error) { TORCH_CHECK(error == nullptr, "kept_rows: ", error); }

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

struct Selected {
  at::Tensor positions, kept, gates, solution;  ///< gates and solution are undefined where the mode has none
};

RowSelectionArguments arguments_of(const at::Tensor& scores, const at::Tensor& lengths, const at::Tensor& positions) {
  RowSelectionArguments a;
  a.scores = scores.const_data_ptr();
  a.lengths = lengths.defined() ? lengths.const_data_ptr<std::int64_t>() : nullptr;
  a.batch = scores.size(0);
  a.length = scores.size(1);
  a.slots = positions.size(1);
  a.float64_scores = scores.scalar_type() == at::kDouble;
  a.positions = positions.data_ptr<std::int64_t>();
  return a;
}

ThresholdMaskArguments mask_arguments(const RowSelectionArguments& rows, const KeptRowsOptions& options,
                                      const at::Tensor& solution) {
  ThresholdMaskArguments a;
  a.rows = rows;
  a.temperature = options.temperature;
  a.zero = options.zero;
  a.one = options.one;
  a.bound = score_bound;
  a.hard_gap = options.hard_gap;
  a.solution = solution.data_ptr<double>();
  return a;
}

/// Source order to falling scores, for more rows than the kernel sorts.
void sort_falling(Selected& s) {
  constexpr double lowest = -std::numeric_limits<double>::infinity();
  const auto ranked = s.kept.masked_fill(s.positions < 0, lowest);
  const auto order = std::get<1>(ranked.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
  for (auto* part : {&s.positions, &s.kept, &s.gates})
    if (part->defined()) *part = part->gather(1, order);
}

Selected select(const at::Tensor& scores, const at::Tensor& lengths, std::int64_t k, const KeptRowsOptions& options) {
  Selected s;
  s.positions = at::empty({scores.size(0), k}, scores.options().dtype(at::kLong));
  s.kept = at::empty({scores.size(0), k}, scores.options());
  auto a = arguments_of(scores, lengths, s.positions);
  a.kept = s.kept.mutable_data_ptr();
  const bool sorts = options.keep_order || k <= most_sorted_rows_cuda;
  a.keep_order = options.keep_order || !sorts;
  if (options.gate == RowGate::score || options.gate == RowGate::mask)
    s.gates = at::empty(s.positions.sizes(), scores.options().dtype(at::kDouble));
  if (options.gate == RowGate::mask) {
    s.solution = at::empty({scores.size(0), 3}, s.gates.options());
    auto mask = mask_arguments(a, options, s.solution);
    mask.gates = s.gates.data_ptr<double>();
    check(options.mask->forward(mask, current_stream()));
  } else {
    if (s.gates.defined()) a.gates = s.gates.data_ptr<double>();
    check(select_rows_cuda(a, current_stream()));
  }
  if (!sorts) sort_falling(s);
  return s;
}

RowGatherArguments gather_arguments(const at::Tensor& positions, const at::Tensor& gates, std::int64_t length,
                                    std::int64_t width, at::ScalarType dtype) {
  RowGatherArguments a;
  a.positions = positions.const_data_ptr<std::int64_t>();
  a.gates = gates.defined() ? gates.const_data_ptr<double>() : nullptr;
  a.batch = positions.size(0);
  a.slots = positions.size(1);
  a.length = length;
  a.width = width;
  a.element = *element_of(dtype);
  return a;
}

class KeptRowsKernel : public torch::autograd::Function<KeptRowsKernel> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& given, const at::Tensor& given_scores,
                               std::int64_t k, const std::optional<at::Tensor>& given_lengths,
                               const KeptRowsOptions& options) {
    const c10::cuda::CUDAGuard guard(given.device());
    const auto x = given.contiguous(), scores = given_scores.contiguous();
    const auto lengths = given_lengths ? given_lengths->contiguous() : at::Tensor();
    const auto s = select(scores, lengths, k, options);
    const auto values = at::empty({x.size(0), k, x.size(2)}, x.options());
    auto a = gather_arguments(s.positions, s.gates, x.size(1), x.size(2), x.scalar_type());
    a.x = x.const_data_ptr();
    a.out = values.mutable_data_ptr();
    check(gather_rows_forward_cuda(a, current_stream()));

    const bool scores_learn = options.gate != RowGate::none;
    const auto when_learning = [&](const at::Tensor& tensor) { return scores_learn ? tensor : at::Tensor(); };
    context->save_for_backward(
        {when_learning(x), when_learning(scores), when_learning(lengths), s.positions, s.gates, s.solution});
    context->saved_data["length"] = x.size(1);
    context->saved_data["mask"] = reinterpret_cast<std::int64_t>(options.mask);
    context->saved_data["temperature"] = options.temperature;
    if (scores_learn) context->mark_non_differentiable({s.positions});
    else context->mark_non_differentiable({s.kept, s.positions});
    return {values, s.kept, s.positions};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &scores = saved[1], &positions = saved[3], &gates = saved[4];
    const auto out_gradient = gradients[0].contiguous();
    const c10::cuda::CUDAGuard guard(out_gradient.device());
    const auto length = context->saved_data["length"].toInt();
    auto a = gather_arguments(positions, gates, length, out_gradient.size(2), out_gradient.scalar_type());
    a.out_gradient = out_gradient.const_data_ptr();
    at::Tensor x_gradient, score_gradient;
    if (context->needs_input_grad(0)) {
      x_gradient = at::empty({a.batch, length, a.width}, out_gradient.options());
      a.x_gradient = x_gradient.mutable_data_ptr();
    }
    if (x.defined() && context->needs_input_grad(1)) {
      a.x = x.const_data_ptr();
      score_gradient = run_with_scores(context, a, scores, saved[2], positions, saved[5], gradients[1].contiguous());
    } else {
      check(gather_rows_backward_cuda(a, current_stream()));
    }
    return {x_gradient, score_gradient, Variable(), Variable(), Variable()};
  }

 private:
  /// The backward pass with the gradient of the scores, which it returns.
  static at::Tensor run_with_scores(AutogradContext* context, RowGatherArguments& a, const at::Tensor& scores,
                                    const at::Tensor& lengths, const at::Tensor& positions, const at::Tensor& solution,
                                    const at::Tensor& kept_gradient) {
    if (!solution.defined()) {
      auto score_gradient = at::empty_like(scores);
      a.scores = scores.const_data_ptr();
      a.float64_scores = scores.scalar_type() == at::kDouble;
      a.kept_gradient = kept_gradient.const_data_ptr();
      a.score_gradient = score_gradient.mutable_data_ptr();
      check(gather_rows_backward_cuda(a, current_stream()));
      return score_gradient;
    }
    const auto dots = at::empty(positions.sizes(), solution.options());
    a.dots = dots.data_ptr<double>();
    check(gather_rows_backward_cuda(a, current_stream()));
    auto score_gradient = at::empty_like(scores);
    KeptRowsOptions options;
    options.temperature = context->saved_data["temperature"].toDouble();
    auto mask = mask_arguments(arguments_of(scores, lengths, positions), options, solution);
    mask.gate_gradient = a.dots;
    mask.kept_gradient = kept_gradient.const_data_ptr();
    mask.score_gradient = score_gradient.mutable_data_ptr();
    const auto* kernel = reinterpret_cast<const ThresholdMaskKernel*>(context->saved_data["mask"].toInt());
    check(kernel->backward(mask, current_stream()));
    return score_gradient;
  }
};

}  // namespace

std::string kept_rows_backend(const at::Device& device) { return device.is_cuda() ? "cuda" : "aten"; }

std::optional<Pooled> keep_rows_by_kernel(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                                          const std::optional<at::Tensor>& lengths, const KeptRowsOptions& options) {
  if (!x.is_cuda() || !element_of(x.scalar_type()) || x.size(1) > longest_selection_cuda) return std::nullopt;
  const auto parts = KeptRowsKernel::apply(x, scores, k, lengths, options);
  return Pooled{parts[0], parts[1], parts[2]};
}

#else

std::string kept_rows_backend(const at::Device&) { return "aten"; }

std::optional<Pooled> keep_rows_by_kernel(const at::Tensor&, const at::Tensor&, std::int64_t,
                                          const std::optional<at::Tensor>&, const KeptRowsOptions&) {
  return std::nullopt;
}

#endif

}  // namespace transpool
