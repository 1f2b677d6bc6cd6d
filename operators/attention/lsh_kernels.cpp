#include "operators/attention/lsh_kernels.h"

#include "operators/attention/lsh_cuda.h"
#include "operators/element_of.h"
#include "operators/flop_formula.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#ifdef TRANSPOOL_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace transpool {
namespace {

using Arguments = c10::ArrayRef<const c10::IValue>;

/// Chunks that are not full are computed as such.
double pairs_of(const at::Tensor& q, std::int64_t rounds, std::int64_t chunk) {
  const auto rows = (q.size(2) + chunk - 1) / chunk * chunk;
  return static_cast<double>(q.size(0) * q.size(1) * rounds * rows * 2 * chunk);
}

const RegisterFlopFormula hash_flops("transpool::lsh_hash", [](Arguments a) {
  const auto& planes = a[1].toTensor();
  return CallFlops{2.0 * static_cast<double>(a[0].toTensor().numel() * planes.size(1) * planes.size(3))};
});

/// Arguments: q, rounds, chunk.
const RegisterFlopFormula attend_flops("transpool::lsh_attend", [](Arguments a) {
  const auto& q = a[0].toTensor();
  return CallFlops{4.0 * pairs_of(q, a[1].toInt(), a[2].toInt()) * static_cast<double>(q.size(3))};
});

/// Five products, of which the logits are computed again. A run of chunks repeats four of the pairs of two chunks: those of
/// its last keys, which the next run needs too.
const RegisterFlopFormula attend_backward_flops("transpool::lsh_attend_backward", [](Arguments a) {
  const auto& q = a[0].toTensor();
  const auto rounds = a[1].toInt(), chunk = a[2].toInt();
  const double product = 2.0 * pairs_of(q, rounds, chunk) * static_cast<double>(q.size(3));
  const auto chunks = (q.size(2) + chunk - 1) / chunk, sequences = q.size(0) * q.size(1) * rounds;
  const auto length = lsh_run_length(chunks, sequences), runs = (chunks + length - 1) / length * sequences;
  const double repeated = 8.0 * static_cast<double>(runs * chunk * chunk * q.size(3));
  return CallFlops{5 * product + repeated, product + repeated};
});

#ifdef TRANSPOOL_CUDA

LshTensor strided(const at::Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

/// As it is where rows can be read 16 bytes at a time, else a copy.
at::Tensor readable(const at::Tensor& t) {
  bool fits = t.stride(3) == 1 && reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 == 0;
  for (std::int64_t d = 0; d < 3; ++d) fits = fits && (t.size(d) == 1 || t.stride(d) % 8 == 0);
  return fits ? t : t.contiguous();
}

void launch(const char* (*kernel)(const LshArguments&, void*), const LshArguments& arguments) {
  const char* error = kernel(arguments, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(error == nullptr, "lsh: ", error);
}

LshArguments arguments_of(const at::Tensor& q, const LshRounds& rounds) {
  LshArguments a;
  a.batch = q.size(0), a.heads = q.size(1), a.rows = q.size(2), a.width = q.size(3);
  a.rounds = rounds.rounds, a.chunk = rounds.chunk, a.causal = rounds.causal;
  a.first_buckets = rounds.buckets.first, a.second_buckets = rounds.buckets.second;
  a.element = element_of(q.scalar_type()).value();
  a.q = strided(q);
  return a;
}

class LshFunction : public torch::autograd::Function<LshFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& queries, const at::Tensor& k,
                            const at::Tensor& values, const std::optional<at::Tensor>& hashes,
                            const std::optional<at::Tensor>& lengths, const LshRounds& rounds) {
    const c10::cuda::CUDAGuard on_device(queries.device());
    const auto q = readable(queries), v = readable(values);
    const auto batch = q.size(0), heads = q.size(1), n = q.size(2);
    const auto valid = lengths ? lengths->contiguous() : at::Tensor();
    const auto order = at::empty({batch, heads, rounds.rounds, n}, q.options().dtype(at::kInt));
    const auto chunks = at::empty({batch, heads, n, 8}, q.options().dtype(at::kShort));
    const auto parts = at::empty({batch, heads, rounds.rounds, n, q.size(3)}, q.options());
    const auto part_normalisers = at::empty({batch, heads, rounds.rounds, n}, q.options().dtype(at::kFloat));
    const auto normalisers = at::empty({batch, heads, n}, part_normalisers.options());
    auto out = at::empty_like(q);
    auto a = arguments_of(q, rounds);
    a.v = strided(v);
    a.out = strided(out);
    a.lengths = lengths ? valid.const_data_ptr<std::int64_t>() : nullptr;
    a.hashes = hashes ? hashes->mutable_data_ptr<std::int32_t>() : nullptr;
    a.order = order.mutable_data_ptr<std::int32_t>();
    a.chunks = static_cast<std::uint16_t*>(chunks.mutable_data_ptr());
    a.round_values = parts.mutable_data_ptr();
    a.round_normalisers = part_normalisers.mutable_data_ptr<float>();
    a.normalisers = normalisers.mutable_data_ptr<float>();
    const std::vector<c10::IValue> seen = {q, rounds.rounds, rounds.chunk};
    RECORD_FUNCTION("transpool::lsh_attend", seen);
    launch(lsh_sort_cuda, a);
    launch(lsh_forward_cuda, a);
    context->save_for_backward({q, v, out, normalisers, order, chunks, valid});
    context->saved_data["rounds"] = std::vector<std::int64_t>{rounds.rounds, rounds.chunk, rounds.causal ? 1 : 0};
    context->saved_data["k"] = k.sizes().vec();
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list out_gradients) {
    const auto saved = context->get_saved_variables();
    const auto &q = saved[0], &v = saved[1], &out = saved[2], &normalisers = saved[3], &valid = saved[6];
    const c10::cuda::CUDAGuard on_device(q.device());
    const auto options = context->saved_data["rounds"].toIntVector();
    const LshRounds rounds{.rounds = options[0], .chunk = options[1], .causal = options[2] != 0};
    const auto out_gradient = readable(out_gradients[0]);
    const std::vector<std::int64_t> part_sizes = {q.size(0), q.size(1), rounds.rounds, q.size(2), q.size(3)};
    const auto q_parts = at::empty(part_sizes, q.options()), v_parts = at::empty(part_sizes, q.options());
    const auto products = at::empty_like(normalisers);
    auto q_gradient = at::empty_like(q), v_gradient = at::empty_like(v);
    auto a = arguments_of(q, rounds);
    a.v = strided(v), a.out = strided(out), a.out_gradient = strided(out_gradient);
    a.q_gradient = strided(q_gradient), a.v_gradient = strided(v_gradient);
    a.lengths = valid.defined() ? valid.const_data_ptr<std::int64_t>() : nullptr;
    a.order = saved[4].mutable_data_ptr<std::int32_t>();
    a.chunks = static_cast<std::uint16_t*>(saved[5].mutable_data_ptr());
    a.round_q_gradients = q_parts.mutable_data_ptr(), a.round_values = v_parts.mutable_data_ptr();
    a.normalisers = normalisers.mutable_data_ptr<float>();
    a.out_products = products.mutable_data_ptr<float>();
    const std::vector<c10::IValue> seen = {q, rounds.rounds, rounds.chunk};
    RECORD_FUNCTION("transpool::lsh_attend_backward", seen);
    launch(lsh_backward_cuda, a);
    const auto k_gradient = at::zeros({}, q.options()).expand(context->saved_data["k"].toIntVector());
    return {q_gradient, k_gradient, v_gradient, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

#endif

[[maybe_unused]] bool half_type(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

}  // namespace

std::optional<at::Tensor> hash_by_kernel(const at::Tensor& q, const at::Tensor& planes, const LshBuckets& buckets) {
#ifdef TRANSPOOL_CUDA
  if (!q.is_cuda() || q.numel() == 0 || !lsh_hash_takes(q.size(3))) return std::nullopt;
  const c10::cuda::CUDAGuard on_device(q.device());
  const auto queries = readable(q.detach());
  const auto used = planes.contiguous();
  const auto hashes = at::empty({q.size(0), q.size(1), planes.size(1), q.size(2)}, q.options().dtype(at::kInt));
  auto a = arguments_of(queries, {.rounds = planes.size(1), .buckets = buckets});
  a.planes = used.const_data_ptr<float>();
  a.hashes = hashes.mutable_data_ptr<std::int32_t>();
  const std::vector<c10::IValue> seen = {queries, used};
  RECORD_FUNCTION("transpool::lsh_hash", seen);
  launch(lsh_hash_cuda, a);
  return hashes;
#else
  static_cast<void>(q), static_cast<void>(planes), static_cast<void>(buckets);
  return std::nullopt;
#endif
}

bool lsh_kernels_take(const AttentionShape& shape, const LshRounds& rounds) {
#ifdef TRANSPOOL_CUDA
  return shape.device == at::kCUDA && half_type(shape.dtype) && rounds.chunk <= shape.queries &&
         lsh_kernels_take(shape.queries, shape.head_width, rounds.rounds, rounds.chunk, rounds.buckets.all());
#else
  static_cast<void>(shape), static_cast<void>(rounds);
  return false;
#endif
}

bool lsh_kernels_take(const at::Tensor& q, const at::Tensor& v, const LshRounds& rounds) {
#ifdef TRANSPOOL_CUDA
  if (!q.is_cuda() || q.numel() == 0 || v.size(3) != q.size(3)) return false;
  const AttentionShape shape{
      .queries = q.size(2), .keys = q.size(2), .head_width = q.size(3), .dtype = q.scalar_type(), .device = at::kCUDA};
  return lsh_kernels_take(shape, rounds) && at::cuda::getDeviceProperties(q.get_device())->major >= 8;
#else
  static_cast<void>(q), static_cast<void>(v), static_cast<void>(rounds);
  return false;
#endif
}

at::Tensor lsh_by_kernels(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const std::optional<at::Tensor>& hashes, const std::optional<at::Tensor>& lengths,
                          const LshRounds& rounds) {
#ifdef TRANSPOOL_CUDA
  return LshFunction::apply(q, k, v, hashes, lengths, rounds);
#else
  static_cast<void>(q), static_cast<void>(k), static_cast<void>(v), static_cast<void>(hashes);
  static_cast<void>(lengths), static_cast<void>(rounds);
  throw Unsupported("attention operator \"lsh\" has kernels in builds with CUDA only");
#endif
}

}  // namespace transpool
