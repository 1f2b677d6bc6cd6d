#include "operators/pooling/row_gather.cuh"

namespace transpool {
namespace {

using namespace row_gather;

unsigned blocks_for(std::int64_t warps) {
  constexpr int warps_per_block = threads_per_block / 32;
  return static_cast<unsigned>((warps + warps_per_block - 1) / warps_per_block);
}

cudaError_t zero(void* memory, std::int64_t elements, std::size_t size, cudaStream_t stream) {
  return memory ? cudaMemsetAsync(memory, 0, static_cast<std::size_t>(elements) * size, stream) : cudaSuccess;
}

/// Zeros, then the kept rows over them: one kernel that writes both was slower than that.
template <class T, int V>
void launch_backward(const RowGatherArguments& a, cudaStream_t stream) {
  const auto blocks = blocks_for(a.batch * a.slots);
  if (zero(a.x_gradient, a.batch * a.length * a.width, sizeof(T), stream)) return;
  if (zero(a.score_gradient, a.batch * a.length, a.float64_scores ? 8 : 4, stream)) return;
  if (a.float64_scores) backward_kernel<T, V, double><<<blocks, threads_per_block, 0, stream>>>(a);
  else backward_kernel<T, V, float><<<blocks, threads_per_block, 0, stream>>>(a);
}

/// The gather waits on the device for the selection before it, so that its blocks may be placed meanwhile.
template <class T, int V>
void launch_forward(const RowGatherArguments& a, cudaStream_t stream) {
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks_for(a.batch * a.slots));
  config.blockDim = dim3(threads_per_block);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, forward_kernel<T, V, 32>, a);
}

template <class T, int V>
void launch(const RowGatherArguments& a, bool forward, cudaStream_t stream) {
  if (forward) launch_forward<T, V>(a, stream);
  else launch_backward<T, V>(a, stream);
}

const char* dispatch(const RowGatherArguments& a, bool forward, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  return by_access(a.element, a.width, {a.x, a.out_gradient, a.out, a.x_gradient},
                   [&]<class T, int V>() { launch<T, V>(a, forward, static_cast<cudaStream_t>(stream)); });
}

}  // namespace

const char* gather_rows_forward_cuda(const RowGatherArguments& a, void* stream) { return dispatch(a, true, stream); }

const char* gather_rows_backward_cuda(const RowGatherArguments& a, void* stream) { return dispatch(a, false, stream); }

}  // namespace transpool
