#include "runners/measure/cuda_graph.h"

#include "operators/error.h"
#include "runners/measure/device.h"

#ifdef TRANSPOOL_CUDA
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace transpool {

#ifdef TRANSPOOL_CUDA
namespace {

/// Lends the default generator a state of its own: a capture that fails would leave it refusing to draw.
class LentGenerator {
 public:
  explicit LentGenerator(const at::Device& device)
      : generator_(at::cuda::detail::getDefaultCUDAGenerator(device.index())), before_(generator_.graphsafe_get_state()) {
    generator_.graphsafe_set_state(at::cuda::detail::createCUDAGenerator(device.index()).graphsafe_get_state());
  }
  ~LentGenerator() { generator_.graphsafe_set_state(before_); }
  LentGenerator(const LentGenerator&) = delete;
  LentGenerator& operator=(const LentGenerator&) = delete;

 private:
  at::Generator generator_, before_;
};

/// Takes the stream out of a capture that did not come to its end, and both allocators out of the graph's pool: they ask the
/// graph which streams it captures, and it is about to go.
void abandon_capture(const c10::cuda::CUDAStream& stream, const at::Device& device, c10::MempoolId_t pool) {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream.stream(), &graph) == cudaSuccess && graph != nullptr) cudaGraphDestroy(graph);
  (void)cudaGetLastError();  // what the failed calls left behind must not fail the next launch
  c10::cuda::CUDACachingAllocator::endAllocateToPool(device.index(), pool);
  c10::cuda::CUDACachingAllocator::releasePool(device.index(), pool);
  auto* const pinned = at::getHostAllocator(at::kCUDA);
  pinned->end_allocate_to_pool(pool);
  pinned->release_pool(pool);
}

void add_nodes(cudaGraph_t graph, Launches& found) {
  std::size_t count = 0;
  C10_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  C10_CUDA_CHECK(cudaGraphGetNodes(graph, nodes.data(), &count));
  for (auto* const node : nodes) {
    cudaGraphNodeType type{};
    C10_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
    if (type == cudaGraphNodeTypeKernel) ++found.kernels;
    else if (type == cudaGraphNodeTypeMemcpy) ++found.copies;
    else if (type == cudaGraphNodeTypeMemset) ++found.fills;
    else if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t child = nullptr;
      C10_CUDA_CHECK(cudaGraphChildGraphNodeGetGraph(node, &child));
      add_nodes(child, found);
    } else ++found.others;
  }
}

Launches count_on_cuda(const std::function<void()>& run, const at::Device& device) {
  Launches found;
  synchronize(device);
  const auto stream = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index());
  const c10::cuda::CUDAStreamGuard guard(stream);
  const LentGenerator lent(device);
  run();
  synchronize(device);
  const auto pool = at::cuda::graph_pool_handle();
  at::cuda::CUDAGraph graph(/*keep_graph=*/true);
  graph.capture_begin(pool);
  try {
    run();
    graph.capture_end();
  } catch (const std::exception& error) {
    abandon_capture(stream, device, pool);
    const std::string text = error.what();
    found.reason = "the pass cannot be captured: " + text.substr(0, text.find('\n'));
    return found;
  }
  add_nodes(graph.raw_cuda_graph(), found);
  return found;
}

}  // namespace
#endif

std::function<void()> captured([[maybe_unused]] const std::function<void()>& run,
                               [[maybe_unused]] const at::Device& device) {
#ifdef TRANSPOOL_CUDA
  if (device.is_cuda()) {
    auto graph = std::make_shared<at::cuda::CUDAGraph>();
    synchronize(device);
    {
      // Capturing is refused on the default stream.
      const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
      for (int i = 0; i < 3; ++i) run();
      synchronize(device);
      graph->capture_begin();
      run();
      graph->capture_end();
    }
    synchronize(device);
    return [graph] { graph->replay(); };
  }
#endif
  throw Unsupported("timing.graph needs a CUDA device and a build with CUDA");
}

Launches count_launches([[maybe_unused]] const std::function<void()>& run, [[maybe_unused]] const at::Device& device) {
#ifdef TRANSPOOL_CUDA
  if (device.is_cuda()) return count_on_cuda(run, device);
#endif
  Launches found;
  found.reason = "launches are counted on a CUDA device";
  return found;
}

}  // namespace transpool
