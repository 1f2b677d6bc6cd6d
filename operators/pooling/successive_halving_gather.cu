#include "operators/pooling/successive_halving.cuh"

#include <algorithm>

namespace transpool {
namespace {

/// One block an output: each thread sums V columns at a time over the leaves that count, four rows in flight.
template <class T, int V>
__global__ void gather_kernel(SuccessiveHalvingArguments a) {
  using Sum = typename Accumulator<T>::type;
  asm volatile("griddepcontrol.wait;" ::: "memory");  // for the tournament, during which this grid is launched
  const std::int64_t slot = blockIdx.x;
  const std::int64_t leaves = std::int64_t{1} << a.rounds;
  const T* x = static_cast<const T*>(a.x) + blockIdx.x / static_cast<unsigned>(a.slots) * a.length * a.width;
  const auto* leaf = static_cast<const Leaf<Sum>*>(a.leaves) + slot * leaves;
  const Sum least = least_weight(leaf, leaves, a.epsilon);
  const int lane = threadIdx.x % 32;
  for (std::int64_t start = 0; start < a.width; start += blockDim.x * V) {
    const std::int64_t column = start + threadIdx.x * V;
    const bool inside = column < a.width;
    Sum sum[V] = {};
    for (std::int64_t tile = 0; tile < leaves; tile += 32) {
      const bool there = tile + lane < leaves;
      const auto [row, weight] = there ? leaf[tile + lane] : Leaf<Sum>{-1, Sum(0)};
      unsigned left = __ballot_sync(0xffffffffu, row >= 0 && weight != Sum(0) && weight >= least);
      while (left) {
        Pack<T, V> pack[4];
        Sum factor[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const int which = left ? __ffs(left) - 1 : 0;
          const int source = __shfl_sync(0xffffffffu, row, which);
          factor[u] = __shfl_sync(0xffffffffu, weight, which);
          if (left && inside)
            pack[u] = *reinterpret_cast<const Pack<T, V>*>(x + static_cast<std::int64_t>(source) * a.width + column);
          else factor[u] = 0;
          left &= left - 1;
        }
#pragma unroll
        for (int u = 0; u < 4; ++u)
          if (factor[u] != Sum(0))
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += factor[u] * static_cast<Sum>(pack[u].element[v]);
      }
    }
    if (!inside) continue;
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.element[v] = static_cast<T>(sum[v]);
    *reinterpret_cast<Pack<T, V>*>(static_cast<T*>(a.values) + slot * a.width + column) = result;
  }
}

template <class T, int V>
void launch_gather(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  const auto warps = (a.width + 32 * V - 1) / (32 * V);
  const auto block = static_cast<unsigned>(32 * std::min<std::int64_t>(8, warps));
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(a.batch * a.slots));
  config.blockDim = dim3(block);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, gather_kernel<T, V>, a);
}

}  // namespace

const char* successive_halving_gather_cuda(const SuccessiveHalvingArguments& a, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  return by_access(a.element, a.width, {a.x, a.values},
                   [&]<class T, int V>() { launch_gather<T, V>(a, static_cast<cudaStream_t>(stream)); });
}

}  // namespace transpool
