#include "operators/attention/flash_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace transpool {
namespace {

constexpr int threads_per_block = 256;

__device__ std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

/// One thread a chunk.
__global__ void segments_kernel(SegmentArguments a, std::int64_t chunks, int count) {
  const std::int64_t id = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (id == 0) {
    a.query_starts[a.sequences * chunks * count] = static_cast<int>(a.sequences * a.n);
    a.key_starts[a.sequences * chunks * count] = static_cast<int>(a.sequences * a.key_rows);
  }
  if (id >= a.sequences * chunks) return;
  const std::int64_t sequence = id / chunks, first = id % chunks * a.chunk;
  const std::int64_t length = a.lengths == nullptr ? a.n : a.lengths[sequence / a.repeat];
  const std::int64_t size = a.n - first < a.chunk ? a.n - first : a.chunk;
  const std::int64_t valid = clamp(length - first, 0, size);
  const std::int64_t far = valid < a.global ? a.global : valid, near = valid < a.global ? valid : a.global;
  std::int64_t q[5] = {}, k[5] = {};
  switch (a.form) {
    case Segments::whole: break;
    case Segments::keys: q[1] = size, k[1] = valid; break;
    case Segments::aligned: q[1] = k[1] = k[2] = valid, q[2] = size; break;
    case Segments::padded: q[1] = k[2] = valid, q[2] = size; break;
    case Segments::window: q[1] = q[2] = k[2] = a.global, q[3] = k[3] = k[4] = far, q[4] = size; break;
    case Segments::global: q[1] = a.global, q[2] = size, k[2] = near; break;
    case Segments::suffix: k[1] = clamp(a.chunk - length + a.global, 0, a.chunk); break;
  }
  for (int s = 0; s < count; ++s) {
    a.query_starts[id * count + s] = static_cast<int>(sequence * a.n + first + q[s]);
    a.key_starts[id * count + s] = static_cast<int>(sequence * a.key_rows + first + k[s]);
  }
}

template <class T>
struct alignas(16) Pack {
  T element[8];
};

/// One thread eight columns of a row; the first of a row writes its log-sum-exp.
template <class T>
__global__ void join_kernel(JoinArguments a) {
  const std::int64_t packs = a.width / 8;
  const std::int64_t id = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (id >= a.rows * a.heads * packs) return;
  const std::int64_t row = id / packs / a.heads, head = id / packs % a.heads;
  const float left = a.normaliser[head * a.rows + row], right = a.other_normaliser[head * a.rows + row];
  const float l = isinf(left) ? -INFINITY : left, r = isinf(right) ? -INFINITY : right;
  const float top = fmaxf(l, r);
  const bool none = isinf(top);
  const float sum = none ? 1.0f : expf(l - top) + expf(r - top);
  const float left_share = none ? 0.0f : expf(l - top) / sum, right_share = none ? 0.0f : expf(r - top) / sum;
  auto mine = static_cast<Pack<T>*>(a.out)[id];
  const auto theirs = static_cast<const Pack<T>*>(a.other)[id];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    mine.element[i] = static_cast<T>(left_share * static_cast<float>(mine.element[i]) +
                                     right_share * static_cast<float>(theirs.element[i]));
  static_cast<Pack<T>*>(a.out)[id] = mine;
  if (id % packs == 0) a.joint_normaliser[head * a.rows + row] = none ? INFINITY : top + logf(sum);
}

const char* last_error() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>((threads + threads_per_block - 1) / threads_per_block);
}

}  // namespace

const char* write_segments_cuda(const SegmentArguments& a, void* stream) {
  const std::int64_t chunks = (a.n + a.chunk - 1) / a.chunk;
  segments_kernel<<<blocks_for(a.sequences * chunks), threads_per_block, 0, static_cast<cudaStream_t>(stream)>>>(
      a, chunks, segment_count(a.form));
  return last_error();
}

const char* join_attentions_cuda(const JoinArguments& a, void* stream) {
  const std::int64_t threads = a.rows * a.heads * (a.width / 8);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (a.bfloat16) join_kernel<__nv_bfloat16><<<blocks_for(threads), threads_per_block, 0, cuda_stream>>>(a);
  else join_kernel<__half><<<blocks_for(threads), threads_per_block, 0, cuda_stream>>>(a);
  return last_error();
}

}  // namespace transpool
