#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace transpool {

/// Bytes over one pass: the peak, and the peak beyond what was allocated when it began.
struct MemoryUse {
  double peak = 0;
  double delta = 0;
  double workspace = 0;      ///< the peak beyond what is allocated when the pass is over and its results are still held
  double peak_reserved = 0;  ///< CUDA: of the caching allocator; CPU: 0
  double peak_rss = 0;       ///< CPU: of the process so far; CUDA: 0
};

/// On CUDA from the caching allocator's counters, on the CPU from a hook under LibTorch's allocator (exact tensor bytes).
/// `run` gives back what the pass leaves behind, which is held until the counters are read.
MemoryUse measure_memory(const std::function<std::vector<at::Tensor>()>& run, const at::Device& device);

/// Puts the hook in place. Called once, before the first tensor is made.
void install_memory_hook();

/// Tensor bytes on the CPU that are allocated now and were since the hook is in place.
std::int64_t allocated_cpu_bytes();

}  // namespace transpool
