#include "operators/pooling/soft_topk.cuh"

#include <type_traits>

namespace transpool {
namespace {

constexpr int threads = 256;
constexpr int tile = 512;  // potentials or rows that stand in shared memory at a time
constexpr int target_threads = 128;
constexpr int row_threads = chunk;  // few, since the rows next to the top take by far the most time
/// Column sums that differ this little from the mass, over it, show no more than their own rounding.
constexpr double rounding = 1e-12;

/// Potentials of some targets in shared memory, and the largest of each `lanes` of them.
struct Staged {
  double potential[tile], largest[tile / lanes];
};

/// call(target, height, potential) from the last target to the first, for those of whose logits some may be over `least()`.
/// Levels are at most 0, so that none of a group passes that of its least height and largest potential. All threads of a
/// block pass.
template <class Least, class Call>
__device__ void for_each_target(const SoftTopkArguments& a, std::int64_t b, const Row& row, Staged& staged, Least least,
                                Call call) {
  const int targets = targets_of(a);
  for (int end = targets; end > 0; end -= tile) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tile; i += row_threads) {
      const int target = end - 1 - i;
      const double own = target >= 0 ? a.potentials[b * a.targets + target] : -1.7e308;
      double most = own;
      for (int step = lanes / 2; step > 0; step /= 2) most = fmax(most, __shfl_xor_sync(every_lane, most, step));
      staged.potential[i] = own;
      if (i % lanes == 0) staged.largest[i / lanes] = most;
    }
    __syncthreads();
    const int count = min(tile, end);
    for (int first = 0; first < count; first += lanes) {
      if (!(row.logit(height_of(a, end - 1 - first), staged.largest[first / lanes]) > least())) continue;
      const int group = min(lanes, count - first);
      double height = height_of(a, end - 1 - first);
#pragma unroll 4
      for (int i = first; i < first + group; ++i, height += 1) call(end - 1 - i, height, staged.potential[i]);
    }
  }
}

/// One row a thread, neighbouring ranks side by side, which share most of what is too small to count.
__global__ void __launch_bounds__(row_threads) norms_kernel(SoftTopkArguments a) {
  __shared__ Staged staged;
  __shared__ int band[2];
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  if (a.converged[b]) return;
  const int rank = static_cast<int>(blockIdx.x) * row_threads + static_cast<int>(threadIdx.x);
  const bool valid = rank < valid_rows(a, b);
  const Row row = {valid ? a.levels[b * a.length + rank] : 0, 0, 0};
  if (threadIdx.x == 0) {
    band[0] = targets_of(a);
    band[1] = 0;
  }
  double most = -1.7e308;
  for_each_target(
      a, b, row, staged, [&] { return valid ? most : 1.7e308; },
      [&](int, double height, double potential) { most = fmax(most, row.logit(height, potential)); });
  double sum = 0;
  int first = targets_of(a), end = 0;
  for_each_target(
      a, b, row, staged, [&] { return valid ? most + invisible : 1.7e308; },
      [&](int target, double height, double potential) {
        const double under = row.logit(height, potential) - most;
        if (!(under > invisible)) return;
        sum += exp(under);
        first = min(first, target);
        end = max(end, target + 1);
      });
  if (valid) {
    reinterpret_cast<double2*>(a.norms)[b * a.length + rank] = {most, log(sum)};
    atomicMin(&band[0], first);
    atomicMax(&band[1], end);
  }
  __syncthreads();
  if (threadIdx.x < 2) a.bands[(b * chunks_of(a) + blockIdx.x) * 2 + threadIdx.x] = band[threadIdx.x];
}

/// One target a thread, over some of the rows.
__global__ void __launch_bounds__(target_threads) sums_kernel(SoftTopkArguments a) {
  constexpr int rows = soft_topk_rows;
  __shared__ Row row[chunk];
  const auto b = static_cast<std::int64_t>(blockIdx.z);
  if (a.converged[b]) return;
  const int first_target = static_cast<int>(blockIdx.x) * target_threads;
  const int target = first_target + static_cast<int>(threadIdx.x);
  const int end_row = min(valid_rows(a, b), (static_cast<int>(blockIdx.y) + 1) * rows);
  const double height = height_of(a, target);
  const double potential = target < targets_of(a) ? a.potentials[b * a.targets + target] : -1.7e308;
  double sum = 0;
  for (int first = static_cast<int>(blockIdx.y) * rows; first < end_row; first += chunk) {
    const int* band = a.bands + (b * chunks_of(a) + first / chunk) * 2;
    if (band[0] >= first_target + target_threads || band[1] <= first_target) continue;
    const int count = min(chunk, end_row - first);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) row[threadIdx.x] = row_of(a, b, first + static_cast<int>(threadIdx.x));
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const double share = row[i].log_share(height, potential);
      if (share > invisible) sum += exp(share);
    }
  }
  if (target < targets_of(a)) a.partial[(b * gridDim.y + blockIdx.y) * a.targets + target] = sum;
}

/// One block a batch row.
__global__ void __launch_bounds__(threads) collect_kernel(SoftTopkArguments a, int parts) {
  const auto b = static_cast<std::int64_t>(blockIdx.x);
  if (a.converged[b]) return;
  bool off = false;
  for (auto target = static_cast<std::int64_t>(threadIdx.x); target < a.targets; target += threads) {
    double sum = 0;
#pragma unroll 16
    for (int part = 0; part < parts; ++part) sum += a.partial[(b * parts + part) * a.targets + target];
    a.sums[b * a.targets + target] = sum;
    const double mass = a.mass[b * a.targets + target];
    off = off || !(fabs(sum - mass) <= rounding * fmax(mass, 1.0));
  }
  off = __syncthreads_or(off);
  if (threadIdx.x == 0) a.converged[b] = !off;
}

__global__ void __launch_bounds__(target_threads) sinkhorn_kernel(SoftTopkArguments a) {
  constexpr double tiny = 1e-300;
  const auto target = static_cast<std::int64_t>(blockIdx.x) * target_threads + threadIdx.x;
  if (target < a.batch * a.targets && a.mass[target] > 0 && !a.converged[target / a.targets])
    a.potentials[target] += log(fmax(a.mass[target], tiny)) - log(fmax(a.sums[target], tiny));
}

/// log(1 + range) / range of the step, range being its largest difference.
__global__ void __launch_bounds__(threads) newton_kernel(SoftTopkArguments a) {
  __shared__ double lowest[threads], highest[threads];
  const auto offset = static_cast<std::int64_t>(blockIdx.x) * a.targets;
  if (a.converged[blockIdx.x]) return;
  double low = 1.7e308, high = -1.7e308;
  for (auto i = static_cast<std::int64_t>(threadIdx.x); i < a.targets; i += threads) {
    const double step = a.mass[offset + i] > 0 ? a.answer[offset + i] : 0;
    low = fmin(low, step);
    high = fmax(high, step);
  }
  lowest[threadIdx.x] = low;
  highest[threadIdx.x] = high;
  __syncthreads();
  for (int step = threads / 2; step > 0; step /= 2) {
    if (static_cast<int>(threadIdx.x) < step) {
      lowest[threadIdx.x] = fmin(lowest[threadIdx.x], lowest[threadIdx.x + step]);
      highest[threadIdx.x] = fmax(highest[threadIdx.x], highest[threadIdx.x + step]);
    }
    __syncthreads();
  }
  const double range = fmax(highest[0] - lowest[0], 1e-12);
  const double length = log1p(range) / range;
  for (auto i = static_cast<std::int64_t>(threadIdx.x); i < a.targets; i += threads)
    if (a.mass[offset + i] > 0) a.potentials[offset + i] += a.answer[offset + i] * length;
}

/// A source row; no share of a padded one is visible.
__device__ Row source_row(const SoftTopkArguments& a, std::int64_t b, std::int64_t j) {
  if (j >= a.length) return no_row();
  const auto rank = a.ranks[b * a.length + j];
  return rank < valid_rows(a, b) ? row_of(a, b, rank) : no_row();
}

__device__ float exponential(float value) { return expf(value); }
__device__ double exponential(double value) { return exp(value); }

constexpr int weight_targets = 32;

template <class S, class E>
__global__ void __launch_bounds__(threads) weights_kernel(SoftTopkArguments a) {
  __shared__ double potential[weight_targets], scale[weight_targets];
  const auto b = static_cast<std::int64_t>(blockIdx.z);
  const auto j = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int first = static_cast<int>(blockIdx.y) * weight_targets;
  const int count = min(weight_targets, targets_of(a) - 1 - first);
  if (static_cast<int>(threadIdx.x) < count) {
    potential[threadIdx.x] = a.potentials[b * a.targets + first + threadIdx.x];
    scale[threadIdx.x] = 1 / fmax(a.sums[b * a.targets + first + threadIdx.x], a.ridge);
  }
  const Row row = source_row(a, b, j);
  __syncthreads();
  if (j >= a.length) return;
  auto* out = static_cast<E*>(a.weights) + (b * (a.targets - 1) + first) * a.length + j;
  for (int i = 0; i < count; ++i, out += a.length) {
    const double share = row.log_share(height_of(a, first + i), potential[i]);
    *out = static_cast<E>(share > invisible ? exponential(static_cast<S>(share)) * static_cast<S>(scale[i]) : S(0));
  }
}

/// The gains of one rank's row, those of its weights; the rest has none.
template <class E>
struct Gains {
  const E* first;
  std::int64_t length;
  int rest;

  __device__ Gains(const SoftTopkArguments& a, std::int64_t b, std::int64_t rank)
      : first(static_cast<const E*>(a.weight_gradient) + b * (a.targets - 1) * a.length + a.order[b * a.length + rank]),
        length(a.length),
        rest(targets_of(a) - 1) {}
  __device__ double of(int target) const { return target < rest ? static_cast<double>(first[target * length]) : 0.0; }
};

/// One rank a thread: the mean of its gains and of its heights. Gains count from that of its likeliest target.
template <class E>
__global__ void __launch_bounds__(row_threads) means_kernel(SoftTopkArguments a) {
  __shared__ Staged staged;
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  const auto rank = static_cast<std::int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  const bool valid = rank < valid_rows(a, b);
  const Row row = valid ? row_of(a, b, rank) : no_row();
  const Gains<E> gains(a, b, valid ? rank : 0);
  int likeliest = gains.rest;
  for_each_target(
      a, b, row, staged, [&] { return valid ? row.most - 1e-9 * (fabs(row.most) + 1) : 1.7e308; },
      [&](int target, double height, double potential) {
        if (row.logit(height, potential) >= row.most) likeliest = target;
      });
  const double base = valid ? gains.of(likeliest) : 0;
  double mean = 0, mean_height = 0;
  for_each_target(
      a, b, row, staged, [&] { return valid ? row.most + row.log_sum + invisible : 1.7e308; },
      [&](int target, double height, double potential) {
        const double log_share = row.log_share(height, potential);
        if (!(log_share > invisible)) return;
        const double share = exp(log_share);
        mean += share * (gains.of(target) - base);
        mean_height += share * height;
      });
  if (!valid) return;
  const auto place = b * a.length + rank;
  a.means[place] = base + mean;
  a.means[a.batch * a.length + place] = mean_height;
}

/// One target a block: the sum over the rows of share * (gain - its mean).
template <class E>
__global__ void __launch_bounds__(threads) flow_kernel(SoftTopkArguments a) {
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  const int target = static_cast<int>(blockIdx.x);
  const double height = height_of(a, target), potential = a.potentials[b * a.targets + target];
  const int valid = valid_rows(a, b);
  double sum = 0;
  for (int rank = static_cast<int>(threadIdx.x); rank < valid; rank += threads) {
    const int* band = a.bands + (b * chunks_of(a) + rank / chunk) * 2;
    if (band[0] > target || band[1] <= target) continue;
    const double log_share = row_of(a, b, rank).log_share(height, potential);
    if (log_share > invisible) sum += exp(log_share) * (Gains<E>(a, b, rank).of(target) - a.means[b * a.length + rank]);
  }
  sum = sum_over_block<threads>(sum);
  if (threadIdx.x == 0) a.sums[b * a.targets + target] = sum;
}

template <class E>
__global__ void __launch_bounds__(row_threads) gradient_kernel(SoftTopkArguments a) {
  __shared__ Staged staged;
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  const auto rank = static_cast<std::int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  const bool valid = rank < valid_rows(a, b);
  const Row row = valid ? row_of(a, b, rank) : no_row();
  const Gains<E> gains(a, b, valid ? rank : 0);
  const auto place = b * a.length + (valid ? rank : 0);
  const double mean = a.means[place], mean_height = a.means[a.batch * a.length + place];
  double gradient = 0;
  for_each_target(
      a, b, row, staged, [&] { return valid ? row.most + row.log_sum + invisible : 1.7e308; },
      [&](int target, double height, double potential) {
        const double log_share = row.log_share(height, potential);
        if (log_share > invisible)
          gradient += exp(log_share) * (gains.of(target) - mean - a.answer[b * a.targets + target]) * (height - mean_height);
      });
  if (rank < a.length) a.gradient[b * a.length + a.order[b * a.length + rank]] = valid ? gradient : 0;
}

template <class Call>
void by_element(Element element, Call call) {
  switch (element) {
    case Element::float64: call.template operator()<double, double>(); break;
    case Element::float32: call.template operator()<float, float>(); break;
    case Element::float16: call.template operator()<float, __half>(); break;
    case Element::bfloat16: call.template operator()<float, __nv_bfloat16>(); break;
  }
}

}  // namespace

const char* soft_topk_sums_cuda(const SoftTopkArguments& a, void* stream) {
  const auto batch = static_cast<unsigned>(a.batch);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto target_blocks = blocks_for(a.targets, target_threads), parts = blocks_for(a.length, soft_topk_rows);
  norms_kernel<<<dim3(blocks_for(a.length, row_threads), batch), row_threads, 0, cuda_stream>>>(a);
  sums_kernel<<<dim3(target_blocks, parts, batch), target_threads, 0, cuda_stream>>>(a);
  collect_kernel<<<batch, threads, 0, cuda_stream>>>(a, static_cast<int>(parts));
  return launch_error();
}

const char* soft_topk_sinkhorn_cuda(const SoftTopkArguments& a, void* stream) {
  const auto blocks = blocks_for(a.batch * a.targets, target_threads);
  sinkhorn_kernel<<<blocks, target_threads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launch_error();
}

const char* soft_topk_newton_cuda(const SoftTopkArguments& a, void* stream) {
  newton_kernel<<<static_cast<unsigned>(a.batch), threads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return launch_error();
}

const char* soft_topk_weights_cuda(const SoftTopkArguments& a, void* stream) {
  const dim3 grid(blocks_for(a.length, threads), blocks_for(a.targets - 1, weight_targets), static_cast<unsigned>(a.batch));
  by_element(a.element,
             [&]<class S, class E>() { weights_kernel<S, E><<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(a); });
  return launch_error();
}

const char* soft_topk_flow_cuda(const SoftTopkArguments& a, void* stream) {
  const auto batch = static_cast<unsigned>(a.batch);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  by_element(a.element, [&]<class S, class E>() {
    means_kernel<E><<<dim3(blocks_for(a.length, row_threads), batch), row_threads, 0, cuda_stream>>>(a);
    flow_kernel<E><<<dim3(static_cast<unsigned>(a.targets), batch), threads, 0, cuda_stream>>>(a);
  });
  return launch_error();
}

const char* soft_topk_gradient_cuda(const SoftTopkArguments& a, void* stream) {
  const dim3 grid(blocks_for(a.length, row_threads), static_cast<unsigned>(a.batch));
  by_element(a.element, [&]<class S, class E>() {
    gradient_kernel<E><<<grid, row_threads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  return launch_error();
}

}  // namespace transpool
