#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace transpool {

/// Multiprocessors of the current device.
inline int processors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

/// Blocks of a kernel that run at once on the current device.
inline std::int64_t blocks_at_once(const void* kernel, int threads, std::size_t bytes) {
  int resident = 1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, bytes);
  return std::int64_t{processors()} * (resident > 1 ? resident : 1);
}

/// Of the last launch; null: none.
inline const char* launch_error() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// Blocks that take turns with `outputs`: as few as take no longer than all that run at once, so that all have as many.
inline std::int64_t even_blocks(std::int64_t outputs, std::int64_t at_once) {
  const auto each = (outputs + at_once - 1) / at_once;
  return (outputs + each - 1) / each;
}

}  // namespace transpool
