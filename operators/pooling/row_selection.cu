#include "operators/pooling/row_selection.cuh"

namespace transpool {
namespace {

using namespace selection;

constexpr std::int64_t rows_per_block = 4096;

template <class T>
__global__ void __launch_bounds__(threads) select_kernel(RowSelectionArguments a, std::size_t cached) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Workspace<T> workspace;
  cudaTriggerProgrammaticLaunchCompletion();
  const auto segment = load_segment<T>(a, cached ? reinterpret_cast<Key<T>*>(memory) : nullptr);
  select_and_write(a, segment, workspace, memory + cached);
  sync_blocks(segment.blocks);  // no block leaves while another may read its shared memory
}

}  // namespace

const char* select_rows_cuda(const RowSelectionArguments& a, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  const auto launch = launch_for(a, rows_per_block);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return text_of(a.float64_scores ? launch_cluster(select_kernel<double>, launch, a.batch, cuda_stream, a, launch.cached)
                                  : launch_cluster(select_kernel<float>, launch, a.batch, cuda_stream, a, launch.cached));
}

}  // namespace transpool
