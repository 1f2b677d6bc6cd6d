#include "runners/measure/cuda_graph.h"

#include "operators/error.h"
#include "runners/measure/device.h"

#ifdef TRANSPOOL_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace transpool {

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

}  // namespace transpool
