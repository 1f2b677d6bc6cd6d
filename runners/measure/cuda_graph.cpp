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

/// Lends the default generator a copy of its state, since a capture that fails leaves its own refusing to draw. What was
/// lent is taken back unless it is kept, as it must be by who replays the graph: the graph draws from it.
class LentGenerator {
 public:
  explicit LentGenerator(const at::Device& device)
      : generator_(at::cuda::detail::getDefaultCUDAGenerator(device.index())), before_(generator_.graphsafe_get_state()) {
    generator_.graphsafe_set_state(generator_.clone());
  }
  ~LentGenerator() {
    if (!kept_) generator_.graphsafe_set_state(before_);
  }
  LentGenerator(const LentGenerator&) = delete;
  LentGenerator& operator=(const LentGenerator&) = delete;

  void keep() { kept_ = true; }

 private:
  at::Generator generator_, before_;
  bool kept_ = false;
};

/// A capture whose end failed late has taken some steps of cleaning up itself, which the allocators refuse to repeat.
void unless_done(const std::function<void()>& step) {
  try {
    step();
  } catch (const c10::Error&) {
    return;  // why the capture failed is what the caller must hear
  }
}

/// Takes the stream out of a capture that did not come to its end, and both allocators out of the graph's pool: they ask the
/// graph which streams it captures, and it is about to go.
void abandon_capture(const c10::cuda::CUDAStream& stream, c10::MempoolId_t pool) {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream.stream(), &graph) == cudaSuccess && graph != nullptr) cudaGraphDestroy(graph);
  (void)cudaGetLastError();  // what the failed calls left behind must not fail the next launch
  const auto device = stream.device_index();
  auto* const pinned = at::getHostAllocator(at::kCUDA);
  unless_done([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(device, pool); });
  unless_done([&] { c10::cuda::CUDACachingAllocator::releasePool(device, pool); });
  unless_done([&] { pinned->end_allocate_to_pool(pool); });
  unless_done([&] { pinned->release_pool(pool); });
}

/// Captures `run` on the current stream, which is not the default one: capturing is refused there. Where that fails, stream
/// and allocators are as before.
void capture(at::cuda::CUDAGraph& graph, const std::function<void()>& run, const at::Device& device) {
  const auto stream = c10::cuda::getCurrentCUDAStream(device.index());
  const auto pool = at::cuda::graph_pool_handle();
  graph.capture_begin(pool);
  try {
    run();
    graph.capture_end();
  } catch (...) {
    abandon_capture(stream, pool);
    throw;
  }
}

std::function<void()> captured_on_cuda(const std::function<void()>& run, const at::Device& device) {
  auto graph = std::make_shared<at::cuda::CUDAGraph>();
  synchronize(device);
  {
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
    for (int i = 0; i < 3; ++i) run();
    synchronize(device);
    LentGenerator lent(device);
    try {
      capture(*graph, run, device);
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const c10::Error& error) {
      throw std::runtime_error(capture_failure(error) + "; with timing.graph false it is timed as it is launched");
    }
    lent.keep();
  }
  synchronize(device);
  return [graph] { graph->replay(); };
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
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
  const LentGenerator lent(device);
  run();
  synchronize(device);
  at::cuda::CUDAGraph graph(/*keep_graph=*/true);
  try {
    capture(graph, run, device);
  } catch (const std::exception& error) {
    found.reason = capture_failure(error);
    return found;
  }
  add_nodes(graph.raw_cuda_graph(), found);
  return found;
}

}  // namespace
#endif

std::string capture_failure(const std::exception& error) {
  const std::string text = error.what();
  return "the pass cannot be captured as a CUDA graph: " + text.substr(0, text.find('\n'));
}

std::function<void()> captured([[maybe_unused]] const std::function<void()>& run,
                               [[maybe_unused]] const at::Device& device) {
#ifdef TRANSPOOL_CUDA
  if (device.is_cuda()) return captured_on_cuda(run, device);
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
