#pragma once

#include <exception>
#include <functional>
#include <string>

#include <ATen/ATen.h>

namespace transpool {

/// `run` captured as one CUDA graph after three warm-ups: calling the result replays its kernels on the current stream,
/// without the host's part of launching them. Its inputs stay those of the capture and must live as long. Throws
/// Unsupported where this build has no CUDA or the device is none, std::runtime_error with `capture_failure` where `run`
/// does what a graph cannot hold (it waits for the device, say), and what else `run` throws. A failed capture leaves
/// device, allocators and random generator as they were.
std::function<void()> captured(const std::function<void()>& run, const at::Device& device);

/// Why a pass could not be captured, in one line: LibTorch's errors go on with advice on debugging and a backtrace.
std::string capture_failure(const std::exception& error);

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
