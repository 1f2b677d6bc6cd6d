#pragma once

#include <functional>

#include <ATen/ATen.h>

namespace transpool {

/// `run` captured as one CUDA graph after three warm-ups: calling the result replays its kernels on the current stream,
/// without the host's part of launching them. Its inputs stay those of the capture and must live as long. Throws
/// Unsupported where this build has no CUDA, c10::Error where `run` waits for the device.
std::function<void()> captured(const std::function<void()>& run, const at::Device& device);

/// What one pass gives the device to do, child graphs included.
struct Launches {
  std::int64_t kernels = 0;
  std::int64_t copies = 0;
  std::int64_t fills = 0;
  std::int64_t others = 0;  ///< host calls, events, allocations
  std::string reason = {};  ///< why `run` could not be captured; "" where the counts hold
};

/// Captures `run` as one CUDA graph, after a warm-up, and counts its nodes. A failed capture leaves device, allocator and
/// random generator as they were.
Launches count_launches(const std::function<void()>& run, const at::Device& device);

}  // namespace transpool
