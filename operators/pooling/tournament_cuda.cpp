#include "operators/pooling/tournament.h"

#ifdef TRANSPOOL_CUDA
#include "operators/pooling/tournament_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#endif

namespace transpool {

#ifdef TRANSPOOL_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

TournamentArguments arguments_of(const at::Tensor& scores, const at::Tensor& lengths, std::int64_t k,
                                 const TournamentOptions& options) {
  TournamentArguments arguments;
  arguments.scores = scores.const_data_ptr();
  arguments.lengths = lengths.defined() ? lengths.const_data_ptr<std::int64_t>() : nullptr;
  arguments.batch = scores.size(0);
  arguments.length = scores.size(1);
  arguments.slots = k;
  arguments.rounds = static_cast<int>(tournament_rounds(scores.size(1), k));
  arguments.float64_scores = scores.scalar_type() == at::kDouble;
  arguments.base = options.base;
  arguments.mirror = options.mirror;
  arguments.keep_order = options.keep_order;
  return arguments;
}

std::int64_t pairs_of(const TournamentArguments& a) { return (a.slots << a.rounds) - a.slots; }

void check(const char* error) { TORCH_CHECK(error == nullptr, "tournament: ", error); }

class TournamentKernel : public torch::autograd::Function<TournamentKernel> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& given, std::int64_t k,
                               const std::optional<at::Tensor>& given_lengths, double base, bool mirror, bool keep_order) {
    const c10::cuda::CUDAGuard guard(given.device());
    const auto scores = given.contiguous();
    const auto lengths = given_lengths ? given_lengths->contiguous() : at::Tensor();
    auto a = arguments_of(scores, lengths, k, {base, mirror, keep_order});
    const auto options = scores.options().dtype(at::kDouble);
    const auto index = options.dtype(at::kInt);
    const auto pairs = pairs_of(a);
    const auto players = at::empty({2, a.batch, pairs}, index);      // stronger, weaker
    const auto pair_data = at::empty({3, a.batch, pairs}, options);  // share and both scores
    const auto next = at::empty({a.batch, 2 * pairs}, index);
    const auto factor = at::empty({a.batch, 2 * pairs}, options);
    const auto rows = at::empty({a.batch, k, std::int64_t{1} << a.rounds}, options.dtype(at::kLong));
    const auto weights = at::empty(rows.sizes(), options);
    const auto slot_scores = at::empty({a.batch, k}, options);
    const auto positions = at::empty({a.batch, k}, rows.options());
    set_pairs(a, players, pair_data);
    a.next = next.data_ptr<std::int32_t>();
    a.factor = factor.data_ptr<double>();
    a.rows = rows.data_ptr<std::int64_t>();
    a.weights = weights.data_ptr<double>();
    a.slot_scores = slot_scores.data_ptr<double>();
    a.positions = positions.data_ptr<std::int64_t>();
    check(tournament_forward_cuda(a, c10::cuda::getCurrentCUDAStream().stream()));
    context->save_for_backward({scores, lengths, rows, players, pair_data});
    context->saved_data["k"] = k;
    context->saved_data["base"] = base;
    context->mark_non_differentiable({rows, positions});
    return {rows, weights, slot_scores, positions};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &scores = saved[0], &lengths = saved[1], &rows = saved[2];
    const c10::cuda::CUDAGuard guard(scores.device());
    auto a =
        arguments_of(scores, lengths, context->saved_data["k"].toInt(), {.base = context->saved_data["base"].toDouble()});
    const auto pairs = pairs_of(a);
    const auto weight_gradient = gradients[1].contiguous();
    const auto slot_gradient = gradients[2].contiguous();
    const auto workspace = at::empty({a.batch * (2 * (2 * pairs + a.slots) + pairs)}, weight_gradient.options());
    auto result = at::empty_like(scores);
    set_pairs(a, saved[3], saved[4]);
    a.rows = rows.data_ptr<std::int64_t>();
    a.weight_gradient = weight_gradient.const_data_ptr<double>();
    a.slot_gradient = slot_gradient.const_data_ptr<double>();
    a.gain = workspace.data_ptr<double>();
    a.node_weight = a.gain + a.batch * (2 * pairs + a.slots);
    a.difference = a.node_weight + a.batch * (2 * pairs + a.slots);
    a.score_gradient = result.mutable_data_ptr();
    check(tournament_backward_cuda(a, c10::cuda::getCurrentCUDAStream().stream()));
    return {result, Variable(), Variable(), Variable(), Variable(), Variable()};
  }

 private:
  static void set_pairs(TournamentArguments& a, const at::Tensor& players, const at::Tensor& pair_data) {
    const auto all = a.batch * pairs_of(a);
    a.stronger = players.data_ptr<std::int32_t>();
    a.weaker = a.stronger + all;
    a.share = pair_data.data_ptr<double>();
    a.stronger_score = a.share + all;
    a.weaker_score = a.stronger_score + all;
  }
};

}  // namespace
#endif

std::optional<Tournament> run_tournament_kernel([[maybe_unused]] const at::Tensor& scores, [[maybe_unused]] std::int64_t k,
                                                [[maybe_unused]] const std::optional<at::Tensor>& lengths,
                                                [[maybe_unused]] const TournamentOptions& options) {
#ifdef TRANSPOOL_CUDA
  if (scores.is_cuda() && (k << tournament_rounds(scores.size(1), k)) <= longest_tournament_cuda()) {
    auto parts = TournamentKernel::apply(scores, k, lengths, options.base, options.mirror, options.keep_order);
    return Tournament{parts[0], parts[1], parts[2], parts[3]};
  }
#endif
  return std::nullopt;
}

}  // namespace transpool
