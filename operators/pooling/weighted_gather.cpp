#include "operators/pooling/weighted_gather.h"

#include "operators/element_of.h"
#include "operators/flop_formula.h"
#include "operators/host_kernel.h"
#include "operators/pooling/weighted_gather_cuda.h"

#include <ATen/OpMathType.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#ifdef TRANSPOOL_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <algorithm>
#include <cstdint>

namespace transpool {
namespace {

struct Sizes {
  std::int64_t batch, length, slots, fan_in, width;
};

Sizes sizes_of(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights) {
  TORCH_CHECK(x.dim() == 3 && rows.dim() == 3 && rows.sizes() == weights.sizes() && rows.size(0) == x.size(0),
              "weighted_gather: x (B, n, d), rows and weights (B, k, c) expected, got ", x.sizes(), ", ", rows.sizes(), ", ",
              weights.sizes());
  TORCH_CHECK(rows.scalar_type() == at::kLong, "weighted_gather: rows must be int64, got ", rows.scalar_type());
  return {x.size(0), x.size(1), rows.size(1), rows.size(2), x.size(2)};
}

/// Rows stand anywhere in x: the processor cannot guess the next one.
template <class T>
TRANSPOOL_INLINE void prefetch_row(const T* row, std::int64_t width) {
  constexpr auto line = static_cast<std::int64_t>(64 / sizeof(T));
  for (std::int64_t i = 0; i < width; i += line) __builtin_prefetch(row + i);
}

/// sum[i] += weights[r] * rows[r][i] for `count` rows, four at a time, so that the sums are read and written less often.
template <class T, class Sum>
TRANSPOOL_INLINE void add_rows(const T* const* rows, const Sum* weights, std::size_t count, std::int64_t width, Sum* sum) {
  std::size_t r = 0;
  for (; r + 4 <= count; r += 4) {
    for (auto next = r + 4; next < std::min(r + 8, count); ++next) prefetch_row(rows[next], width);
    const T *const a = rows[r], *const b = rows[r + 1], *const c = rows[r + 2], *const d = rows[r + 3];
    const Sum wa = weights[r], wb = weights[r + 1], wc = weights[r + 2], wd = weights[r + 3];
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i)
      sum[i] += (wa * static_cast<Sum>(a[i]) + wb * static_cast<Sum>(b[i])) +
                (wc * static_cast<Sum>(c[i]) + wd * static_cast<Sum>(d[i]));
  }
  for (; r < count; ++r) {
    const T* const row = rows[r];
    const Sum weight = weights[r];
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) sum[i] += weight * static_cast<Sum>(row[i]);
  }
}

template <class T, class Sum>
TRANSPOOL_INLINE void forward_slots(const Sizes& s, const T* x, const std::int64_t* rows, const Sum* weights, T* out,
                                    std::int64_t begin, std::int64_t end) {
  std::vector<Sum> sum(static_cast<std::size_t>(s.width));
  std::vector<const T*> read;
  std::vector<Sum> factors;
  for (std::int64_t slot = begin; slot < end; ++slot) {
    read.clear();
    factors.clear();
    for (std::int64_t c = slot * s.fan_in; c < (slot + 1) * s.fan_in; ++c) {
      if (rows[c] < 0 || weights[c] == Sum(0)) continue;
      read.push_back(x + (slot / s.slots * s.length + rows[c]) * s.width);
      factors.push_back(weights[c]);
    }
    std::fill(sum.begin(), sum.end(), Sum(0));
    add_rows(read.data(), factors.data(), read.size(), s.width, sum.data());
    for (std::int64_t i = 0; i < s.width; ++i) out[slot * s.width + i] = static_cast<T>(sum[static_cast<std::size_t>(i)]);
  }
}

template <class T, class Sum>
TRANSPOOL_AVX2 void forward_slots_avx2(const Sizes& s, const T* x, const std::int64_t* rows, const Sum* weights, T* out,
                                       std::int64_t begin, std::int64_t end) {
  forward_slots(s, x, rows, weights, out, begin, end);
}

template <class T, class Sum>
void forward_rows(const Sizes& s, const T* x, const std::int64_t* rows, const Sum* weights, T* out) {
  in_threads(s.batch * s.slots, tasks_a_thread(s.fan_in * s.width), [&](std::int64_t begin, std::int64_t end) {
    if (has_avx2()) forward_slots_avx2(s, x, rows, weights, out, begin, end);
    else forward_slots(s, x, rows, weights, out, begin, end);
  });
}

/// x_gradient[i] = weight * gradient[i]; returns <gradient, x>. Rows of no weight get zeros and are not read, as forward.
template <class T, class Sum>
TRANSPOOL_INLINE Sum backward_row(const T* gradient, const T* x, Sum weight, std::int64_t width, T* x_gradient) {
  if (weight == Sum(0)) {
    std::fill(x_gradient, x_gradient + width, T(0));
    return 0;
  }
  Sum dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < width; ++i) {
    const Sum g = static_cast<Sum>(gradient[i]);
    dot += g * static_cast<Sum>(x[i]);
    x_gradient[i] = static_cast<T>(weight * g);
  }
  return dot;
}

template <class T, class Sum>
TRANSPOOL_INLINE void backward_slots(const Sizes& s, const T* x, const std::int64_t* rows, const Sum* weights,
                                     const T* out_gradient, T* x_gradient, Sum* weight_gradient, std::int64_t begin,
                                     std::int64_t end) {
  for (std::int64_t slot = begin; slot < end; ++slot) {
    const T* gradient = out_gradient + slot * s.width;
    for (std::int64_t c = slot * s.fan_in; c < (slot + 1) * s.fan_in; ++c) {
      const auto offset = (slot / s.slots * s.length + rows[c]) * s.width;
      weight_gradient[c] =
          rows[c] < 0 ? Sum(0) : backward_row(gradient, x + offset, weights[c], s.width, x_gradient + offset);
    }
  }
}

template <class T, class Sum>
TRANSPOOL_AVX2 void backward_slots_avx2(const Sizes& s, const T* x, const std::int64_t* rows, const Sum* weights,
                                        const T* out_gradient, T* x_gradient, Sum* weight_gradient, std::int64_t begin,
                                        std::int64_t end) {
  backward_slots(s, x, rows, weights, out_gradient, x_gradient, weight_gradient, begin, end);
}

template <class T, class Sum>
void backward_rows(const Sizes& s, const T* x, const std::int64_t* rows, const Sum* weights, const T* out_gradient,
                   T* x_gradient, Sum* weight_gradient) {
  in_threads(s.batch * s.slots, tasks_a_thread(s.fan_in * s.width), [&](std::int64_t begin, std::int64_t end) {
    if (has_avx2()) backward_slots_avx2(s, x, rows, weights, out_gradient, x_gradient, weight_gradient, begin, end);
    else backward_slots(s, x, rows, weights, out_gradient, x_gradient, weight_gradient, begin, end);
  });
}

/// Inputs as the kernels take them: contiguous, weights in the accumulation dtype.
struct Inputs {
  Sizes sizes;
  at::Tensor x, rows, weights;
};

Inputs prepare(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights) {
  return {sizes_of(x, rows, weights), x.contiguous(), rows.contiguous(),
          weights.to(accumulation_dtype(x.scalar_type())).contiguous()};
}

/// Zeroed only where some row may stay unnamed.
at::Tensor x_gradient_for(const Inputs& in, bool every_row_named) {
  auto gradient = at::empty_like(in.x);
  if (gradient.is_cpu()) prefer_huge_pages(gradient);
  return every_row_named ? gradient : gradient.zero_();
}

at::Tensor forward_cpu(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights, bool) {
  const auto in = prepare(x, rows, weights);
  auto out = at::empty({in.sizes.batch, in.sizes.slots, in.sizes.width}, x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "weighted_gather", [&] {
    using Sum = at::opmath_type<scalar_t>;
    forward_rows(in.sizes, in.x.data_ptr<scalar_t>(), in.rows.data_ptr<std::int64_t>(), in.weights.data_ptr<Sum>(),
                 out.data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward_cpu(const at::Tensor& out_gradient, const at::Tensor& x, const at::Tensor& rows,
                                                const at::Tensor& weights, bool every_row_named) {
  const auto in = prepare(x, rows, weights);
  const auto gradient = out_gradient.to(x.scalar_type()).contiguous();
  auto x_gradient = x_gradient_for(in, every_row_named);
  auto weight_gradient = at::empty_like(in.weights);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "weighted_gather_backward", [&] {
    using Sum = at::opmath_type<scalar_t>;
    backward_rows(in.sizes, in.x.data_ptr<scalar_t>(), in.rows.data_ptr<std::int64_t>(), in.weights.data_ptr<Sum>(),
                  gradient.data_ptr<scalar_t>(), x_gradient.data_ptr<scalar_t>(), weight_gradient.data_ptr<Sum>());
  });
  return {x_gradient, weight_gradient.to(weights.scalar_type())};
}

#ifdef TRANSPOOL_CUDA

WeightedGatherArguments arguments_of(const Inputs& in) {
  WeightedGatherArguments arguments;
  arguments.x = in.x.const_data_ptr();
  arguments.rows = in.rows.const_data_ptr<std::int64_t>();
  arguments.weights = in.weights.const_data_ptr();
  arguments.batch = in.sizes.batch;
  arguments.length = in.sizes.length;
  arguments.slots = in.sizes.slots;
  arguments.fan_in = in.sizes.fan_in;
  arguments.width = in.sizes.width;
  arguments.element = element_of(in.x.scalar_type()).value();
  return arguments;
}

at::Tensor forward_cuda(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights, bool) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto in = prepare(x, rows, weights);
  auto out = at::empty({in.sizes.batch, in.sizes.slots, in.sizes.width}, x.options());
  auto arguments = arguments_of(in);
  arguments.out = out.mutable_data_ptr();
  const char* error = weighted_gather_forward_cuda(arguments, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "weighted_gather: ", error);
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward_cuda(const at::Tensor& out_gradient, const at::Tensor& x, const at::Tensor& rows,
                                                 const at::Tensor& weights, bool every_row_named) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto in = prepare(x, rows, weights);
  const auto gradient = out_gradient.to(x.scalar_type()).contiguous();
  auto x_gradient = x_gradient_for(in, every_row_named);
  auto weight_gradient = at::empty_like(in.weights);
  auto arguments = arguments_of(in);
  arguments.out_gradient = gradient.const_data_ptr();
  arguments.x_gradient = x_gradient.mutable_data_ptr();
  arguments.weight_gradient = weight_gradient.mutable_data_ptr();
  const char* error = weighted_gather_backward_cuda(arguments, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "weighted_gather_backward: ", error);
  return {x_gradient, weight_gradient.to(weights.scalar_type())};
}

#endif

at::Tensor call_forward(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights, bool every_row_named) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("transpool::weighted_gather", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, bool)>();
  return op.call(x, rows, weights, every_row_named);
}

std::tuple<at::Tensor, at::Tensor> call_backward(const at::Tensor& out_gradient, const at::Tensor& x, const at::Tensor& rows,
                                                 const at::Tensor& weights, bool every_row_named) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("transpool::weighted_gather_backward", "")
                             .typed<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                                       const at::Tensor&, const at::Tensor&, bool)>();
  return op.call(out_gradient, x, rows, weights, every_row_named);
}

class WeightedGatherFunction : public torch::autograd::Function<WeightedGatherFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& rows,
                            const at::Tensor& weights, bool every_row_named) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, rows, weights});
    context->saved_data["every_row_named"] = every_row_named;
    return call_forward(x, rows, weights, every_row_named);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    auto [x_gradient, weight_gradient] =
        call_backward(gradients[0], saved[0], saved[1], saved[2], context->saved_data["every_row_named"].toBool());
    return {x_gradient, at::Tensor(), weight_gradient, at::Tensor()};
  }
};

at::Tensor forward_autograd(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights, bool every_row_named) {
  return WeightedGatherFunction::apply(x, rows, weights, every_row_named);
}

TORCH_LIBRARY_FRAGMENT(transpool, library) {
  library.def("weighted_gather(Tensor x, Tensor rows, Tensor weights, bool every_row_named=False) -> Tensor");
  library.def(
      "weighted_gather_backward(Tensor out_gradient, Tensor x, Tensor rows, Tensor weights, bool every_row_named=False)"
      " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(transpool, CPU, library) {
  library.impl("weighted_gather", forward_cpu);
  library.impl("weighted_gather_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(transpool, Autograd, library) { library.impl("weighted_gather", forward_autograd); }

#ifdef TRANSPOOL_CUDA
TORCH_LIBRARY_IMPL(transpool, CUDA, library) {
  library.impl("weighted_gather", forward_cuda);
  library.impl("weighted_gather_backward", backward_cuda);
}
#endif

const RegisterFlopFormula forward_flops("transpool::weighted_gather", [](c10::ArrayRef<const c10::IValue> arguments) {
  return CallFlops{2.0 * static_cast<double>(arguments[1].toTensor().numel() * arguments[0].toTensor().size(-1))};
});
const RegisterFlopFormula backward_flops("transpool::weighted_gather_backward",
                                         [](c10::ArrayRef<const c10::IValue> arguments) {
                                           return CallFlops{4.0 * static_cast<double>(arguments[2].toTensor().numel() *
                                                                                      arguments[1].toTensor().size(-1))};
                                         });

}  // namespace

at::Tensor weighted_gather(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& weights, bool every_row_named) {
  return call_forward(x, rows, weights, every_row_named);
}

std::string weighted_gather_backend(const at::Device& device) {
  if (device.is_cpu()) return "cpu";
#ifdef TRANSPOOL_CUDA
  if (device.is_cuda()) return "cuda";
#endif
  throw Unsupported("weighted_gather has no kernel for device " + device.str() + " in this build");
}

}  // namespace transpool
