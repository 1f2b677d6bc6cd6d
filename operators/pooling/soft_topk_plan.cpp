#include "operators/pooling/soft_topk_plan.h"

#include "operators/flop_formula.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#ifdef TRANSPOOL_CUDA
#include "operators/element_of.h"
#include "operators/pooling/soft_topk_cuda.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace transpool {
namespace {

#ifdef TRANSPOOL_CUDA

void check(const char* error) { TORCH_CHECK(error == nullptr, "soft_topk: ", error); }

void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

std::int64_t parts_of(std::int64_t count, std::int64_t each) { return (count + each - 1) / each; }

/// The tensors of a pass, all contiguous: what is given, and what the kernels work in.
struct Work {
  at::Tensor levels, order, potentials, mass, lengths, converged, norms, bands, partial, sums, system, answer;

  Work(const at::Tensor& given_levels, const at::Tensor& given_order, at::Tensor own_potentials,
       const at::Tensor& given_mass, const std::optional<at::Tensor>& given_lengths)
      : levels(given_levels.contiguous()),
        order(given_order.contiguous()),
        potentials(std::move(own_potentials)),
        mass(given_mass.contiguous()),
        lengths(given_lengths ? given_lengths->contiguous() : at::Tensor()) {
    const auto batch = levels.size(0), n = levels.size(1), targets = mass.size(1);
    converged = at::zeros({batch}, levels.options().dtype(at::kInt));
    norms = at::empty({batch, n, 2}, levels.options());
    bands = at::empty({batch, parts_of(n, soft_topk_chunk), 2}, levels.options().dtype(at::kInt));
    partial = at::empty({batch, parts_of(n, soft_topk_rows), targets}, levels.options());
    sums = at::empty_like(mass);
    system = at::empty({batch, targets + 1, targets}, levels.options());
    answer = at::empty_like(mass);
  }

  SoftTopkArguments arguments(double ridge, at::ScalarType dtype) const {
    SoftTopkArguments a;
    a.levels = levels.const_data_ptr<double>();
    a.order = order.const_data_ptr<std::int64_t>();
    a.lengths = lengths.defined() ? lengths.const_data_ptr<std::int64_t>() : nullptr;
    a.mass = mass.const_data_ptr<double>();
    a.potentials = potentials.data_ptr<double>();
    a.converged = converged.data_ptr<int>();
    a.norms = norms.data_ptr<double>();
    a.bands = bands.data_ptr<int>();
    a.partial = partial.data_ptr<double>();
    a.sums = sums.data_ptr<double>();
    a.system = system.data_ptr<double>();
    a.answer = answer.data_ptr<double>();
    a.batch = levels.size(0);
    a.length = levels.size(1);
    a.targets = mass.size(1);
    a.ridge = ridge;
    a.element = element_of(dtype).value();
    return a;
  }
};

std::tuple<at::Tensor, at::Tensor> plan_cuda(const at::Tensor& levels, const at::Tensor& order, const at::Tensor& potentials,
                                             const at::Tensor& mass, const std::optional<at::Tensor>& lengths,
                                             std::int64_t iterations, std::int64_t newton_steps, double ridge,
                                             at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(levels.device());
  const Work work(levels, order, potentials.clone(at::MemoryFormat::Contiguous), mass, lengths);
  const auto weights = at::empty({levels.size(0), mass.size(1) - 1, levels.size(1)}, levels.options().dtype(dtype));
  const auto ranks = at::empty_like(work.order)
                         .scatter_(1, work.order, at::arange(levels.size(1), work.order.options()).expand_as(work.order));
  auto a = work.arguments(ridge, dtype);
  a.ranks = ranks.const_data_ptr<std::int64_t>();
  a.weights = weights.data_ptr();
  check(soft_topk_sums_cuda(a, stream()));
  for (std::int64_t i = 0; i < iterations + newton_steps; ++i) {
    if (i < iterations) {
      check(soft_topk_sinkhorn_cuda(a, stream()));
    } else {
      check(soft_topk_solve_cuda(a, /*flow=*/false, stream()));
      check(soft_topk_newton_cuda(a, stream()));
    }
    check(soft_topk_sums_cuda(a, stream()));
  }
  check(soft_topk_weights_cuda(a, stream()));
  return {weights, work.potentials};
}

at::Tensor plan_backward_cuda(const at::Tensor& given, const at::Tensor& levels, const at::Tensor& order,
                              const at::Tensor& potentials, const at::Tensor& mass, const std::optional<at::Tensor>& lengths,
                              double ridge) {
  const c10::cuda::CUDAGuard guard(levels.device());
  const auto weight_gradient = given.contiguous();
  const Work work(levels, order, potentials.contiguous(), mass, lengths);
  const auto means = at::empty({2, levels.size(0), levels.size(1)}, levels.options());
  const auto gradient = at::empty(levels.sizes(), levels.options());
  auto a = work.arguments(ridge, weight_gradient.scalar_type());
  a.weight_gradient = weight_gradient.const_data_ptr();
  a.means = means.data_ptr<double>();
  a.gradient = gradient.data_ptr<double>();
  check(soft_topk_sums_cuda(a, stream()));
  check(soft_topk_flow_cuda(a, stream()));
  check(soft_topk_solve_cuda(a, /*flow=*/true, stream()));
  check(soft_topk_gradient_cuda(a, stream()));
  return gradient;
}

TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("soft_topk_plan", plan_cuda);
  library.impl("soft_topk_plan_backward", plan_backward_cuda);
}

#endif

template <class Kernel>
auto find_kernel(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def(
      "soft_topk_plan(Tensor levels, Tensor order, Tensor potentials, Tensor mass, Tensor? lengths, int iterations, int "
      "newton_steps, float ridge, ScalarType dtype) -> (Tensor, Tensor)");
  library.def(
      "soft_topk_plan_backward(Tensor weight_gradient, Tensor levels, Tensor order, Tensor potentials, Tensor mass, Tensor? "
      "lengths, float ridge) -> Tensor");
}

/// What the products plan^T plan would take; the kernels leave out the shares that are too small to count, which the scores
/// decide on.
CallFlops coupling_flops(const at::Tensor& levels, const at::Tensor& mass, std::int64_t times) {
  return {.spared = 2 * static_cast<double>(times) * static_cast<double>(levels.numel()) *
                    static_cast<double>(mass.size(1) * mass.size(1))};
}

const RegisterFlopFormula plan_flops("transpool::soft_topk_plan", [](c10::ArrayRef<const c10::IValue> arguments) {
  return coupling_flops(arguments[0].toTensor(), arguments[3].toTensor(), arguments[6].toInt());
});
const RegisterFlopFormula backward_flops("transpool::soft_topk_plan_backward",
                                         [](c10::ArrayRef<const c10::IValue> arguments) {
                                           return coupling_flops(arguments[1].toTensor(), arguments[4].toTensor(), 1);
                                         });

}  // namespace

std::string soft_topk_backend(const at::Device& device) { return device.is_cuda() ? "cuda" : "cpu"; }

std::tuple<at::Tensor, at::Tensor> soft_topk_plan(const at::Tensor& levels, const at::Tensor& order,
                                                  const at::Tensor& potentials, const at::Tensor& mass,
                                                  const std::optional<at::Tensor>& lengths, std::int64_t iterations,
                                                  std::int64_t newton_steps, double ridge, at::ScalarType dtype) {
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = find_kernel<decltype(soft_topk_plan)>("transpool::soft_topk_plan");
  return op.call(levels, order, potentials, mass, lengths, iterations, newton_steps, ridge, dtype);
}

at::Tensor soft_topk_plan_backward(const at::Tensor& weight_gradient, const at::Tensor& levels, const at::Tensor& order,
                                   const at::Tensor& potentials, const at::Tensor& mass,
                                   const std::optional<at::Tensor>& lengths, double ridge) {
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = find_kernel<decltype(soft_topk_plan_backward)>("transpool::soft_topk_plan_backward");
  return op.call(weight_gradient, levels, order, potentials, mass, lengths, ridge);
}

}  // namespace transpool
