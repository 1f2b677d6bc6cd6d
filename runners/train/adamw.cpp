#include "runners/train/adamw.h"

#include <ATen/core/grad_mode.h>

#include <map>

namespace transpool {
namespace {

using State = torch::optim::AdamWParamState;

/// What a fused call takes of one group of parameters.
struct Lists {
  std::vector<at::Tensor> parameters, gradients, averages, squares, steps;
};

Lists lists_of(const std::vector<at::Tensor>& parameters,
               ska::flat_hash_map<void*, std::unique_ptr<torch::optim::OptimizerParamState>>& states) {
  Lists lists;
  std::map<std::int64_t, at::Tensor> step_tensors;  // parameters of one age share one
  for (const auto& parameter : parameters) {
    if (!parameter.grad().defined()) continue;
    auto& slot = states[parameter.unsafeGetTensorImpl()];
    if (!slot) {
      auto fresh = std::make_unique<State>();
      fresh->step(0);
      fresh->exp_avg(at::zeros_like(parameter));
      fresh->exp_avg_sq(at::zeros_like(parameter));
      slot = std::move(fresh);
    }
    auto& state = static_cast<State&>(*slot);
    state.step(state.step() + 1);
    auto& step = step_tensors[state.step()];
    if (!step.defined())
      step = at::full({}, static_cast<double>(state.step()), parameter.options().dtype(at::kFloat).requires_grad(false));
    lists.parameters.push_back(parameter);
    lists.gradients.push_back(parameter.grad());
    lists.averages.push_back(state.exp_avg());
    lists.squares.push_back(state.exp_avg_sq());
    lists.steps.push_back(step);
  }
  return lists;
}

}  // namespace

torch::Tensor AdamW::step(LossClosure closure) {
  at::Tensor loss = closure ? closure() : at::Tensor();
  const at::NoGradGuard no_gradient;
  for (const auto& group : param_groups()) {
    const auto& options = static_cast<const torch::optim::AdamWOptions&>(group.options());
    TORCH_CHECK(!options.amsgrad(), "AdamW: amsgrad is not supported");
    const auto lists = lists_of(group.params(), state());
    if (lists.parameters.empty()) continue;
    at::_fused_adamw_(lists.parameters, lists.gradients, lists.averages, lists.squares, {}, lists.steps, options.lr(),
                      std::get<0>(options.betas()), std::get<1>(options.betas()), options.weight_decay(), options.eps(),
                      /*amsgrad=*/false, /*maximize=*/false);
  }
  return loss;
}

}  // namespace transpool
