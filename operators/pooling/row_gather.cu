#include "operators/pooling/row_gather.cuh"

namespace transpool {
namespace {

using namespace row_gather;

unsigned blocks_for(const RowGatherArguments& a, int rows_per_block) {
  return static_cast<unsigned>((a.batch * a.slots + rows_per_block - 1) / rows_per_block);
}

template <class T, int V>
void launch(const RowGatherArguments& a, bool forward, cudaStream_t stream) {
  const auto blocks = blocks_for(a, threads_per_block / 32);
  if (forward) forward_kernel<T, V, 32><<<blocks, threads_per_block, 0, stream>>>(a);
  else backward_kernel<T, V><<<blocks, threads_per_block, 0, stream>>>(a);
}

/// 16-byte accesses where the row length and the addresses allow them, else element by element.
template <class T>
const char* dispatch(const RowGatherArguments& a, bool forward, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  constexpr int V = 16 / sizeof(T);
  bool aligned = a.width % V == 0;
  for (const void* pointer : {a.x, a.out_gradient, static_cast<const void*>(a.out), static_cast<const void*>(a.x_gradient)})
    aligned = aligned && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (aligned) launch<T, V>(a, forward, cuda_stream);
  else launch<T, 1>(a, forward, cuda_stream);
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* dispatch(const RowGatherArguments& a, bool forward, void* stream) {
  switch (a.element) {
    case Element::float64: return dispatch<double>(a, forward, stream);
    case Element::float32: return dispatch<float>(a, forward, stream);
    case Element::float16: return dispatch<__half>(a, forward, stream);
    case Element::bfloat16: return dispatch<__nv_bfloat16>(a, forward, stream);
  }
  return "row_gather: unknown element type";
}

}  // namespace

const char* gather_rows_forward_cuda(const RowGatherArguments& a, void* stream) { return dispatch(a, true, stream); }

const char* gather_rows_backward_cuda(const RowGatherArguments& a, void* stream) { return dispatch(a, false, stream); }

}  // namespace transpool
