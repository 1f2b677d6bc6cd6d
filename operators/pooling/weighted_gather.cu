#include "operators/pooling/row_access.cuh"
#include "operators/pooling/weighted_gather_cuda.h"

namespace transpool {
namespace {

constexpr int threads_per_block = 128;

/// One block an output row: each thread sums V columns at a time over the rows that are named.
template <class T, int V>
__global__ void forward_kernel(const T* __restrict__ x, const std::int64_t* __restrict__ rows,
                               const typename Accumulator<T>::type* __restrict__ weights, T* __restrict__ out,
                               std::int64_t length, std::int64_t slots, std::int64_t fan_in, std::int64_t width) {
  using Sum = typename Accumulator<T>::type;
  const std::int64_t slot = blockIdx.x;
  const T* source = x + (slot / slots) * length * width;
  rows += slot * fan_in;
  weights += slot * fan_in;
  for (std::int64_t column = threadIdx.x * V; column < width; column += blockDim.x * V) {
    Sum sum[V] = {};
    for (std::int64_t c = 0; c < fan_in; ++c) {
      const Sum weight = weights[c];
      if (rows[c] < 0 || weight == Sum(0)) continue;
      const auto pack = *reinterpret_cast<const Pack<T, V>*>(source + rows[c] * width + column);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weight * static_cast<Sum>(pack.element[v]);
    }
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.element[v] = static_cast<T>(sum[v]);
    *reinterpret_cast<Pack<T, V>*>(out + slot * width + column) = result;
  }
}

/// One warp a named row: writes its gradient and reduces the gradient of its weight.
template <class T, int V>
__global__ void backward_kernel(const T* __restrict__ x, const std::int64_t* __restrict__ rows,
                                const typename Accumulator<T>::type* __restrict__ weights,
                                const T* __restrict__ out_gradient, T* __restrict__ x_gradient,
                                typename Accumulator<T>::type* __restrict__ weight_gradient, std::int64_t length,
                                std::int64_t slots, std::int64_t fan_in, std::int64_t width) {
  using Sum = typename Accumulator<T>::type;
  const std::int64_t slot = blockIdx.x;
  const std::int64_t offset = (slot / slots) * length * width;
  const T* gradient = out_gradient + slot * width;
  const int lane = threadIdx.x % 32;
  for (std::int64_t c = threadIdx.x / 32; c < fan_in; c += blockDim.x / 32) {
    const std::int64_t row = rows[slot * fan_in + c];
    const Sum weight = weights[slot * fan_in + c];
    Sum dot = 0;
    if (row >= 0) {
      for (std::int64_t column = lane * V; column < width; column += 32 * V) {
        Pack<T, V> result = {};
        if (weight != Sum(0)) {
          const auto from_x = *reinterpret_cast<const Pack<T, V>*>(x + offset + row * width + column);
          const auto from_out = *reinterpret_cast<const Pack<T, V>*>(gradient + column);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const Sum g = static_cast<Sum>(from_out.element[v]);
            dot += g * static_cast<Sum>(from_x.element[v]);
            result.element[v] = static_cast<T>(weight * g);
          }
        }
        *reinterpret_cast<Pack<T, V>*>(x_gradient + offset + row * width + column) = result;
      }
    }
    for (int step = 16; step > 0; step /= 2) dot += __shfl_down_sync(0xffffffffu, dot, step);
    if (lane == 0) weight_gradient[slot * fan_in + c] = dot;
  }
}

template <class T, int V>
void launch(const WeightedGatherArguments& a, bool forward, cudaStream_t stream) {
  using Sum = typename Accumulator<T>::type;
  const auto blocks = static_cast<unsigned>(a.batch * a.slots);
  if (forward) {
    forward_kernel<T, V>
        <<<blocks, threads_per_block, 0, stream>>>(static_cast<const T*>(a.x), a.rows, static_cast<const Sum*>(a.weights),
                                                   static_cast<T*>(a.out), a.length, a.slots, a.fan_in, a.width);
  } else {
    backward_kernel<T, V><<<blocks, threads_per_block, 0, stream>>>(
        static_cast<const T*>(a.x), a.rows, static_cast<const Sum*>(a.weights), static_cast<const T*>(a.out_gradient),
        static_cast<T*>(a.x_gradient), static_cast<Sum*>(a.weight_gradient), a.length, a.slots, a.fan_in, a.width);
  }
}

const char* dispatch(const WeightedGatherArguments& a, bool forward, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  return by_access(a.element, a.width, {a.x, a.out_gradient, a.out, a.x_gradient},
                   [&]<class T, int V>() { launch<T, V>(a, forward, static_cast<cudaStream_t>(stream)); });
}

}  // namespace

const char* weighted_gather_forward_cuda(const WeightedGatherArguments& arguments, void* stream) {
  return dispatch(arguments, true, stream);
}

const char* weighted_gather_backward_cuda(const WeightedGatherArguments& arguments, void* stream) {
  return dispatch(arguments, false, stream);
}

}  // namespace transpool
