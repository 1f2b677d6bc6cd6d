#pragma once

#include <functional>

#include <ATen/ATen.h>

namespace transpool {

/// `run` captured as one CUDA graph after three warm-ups: calling the result replays its kernels on the current stream,
/// without the host's part of launching them. Its inputs stay those of the capture and must live as long. Throws
/// Unsupported where this build has no CUDA, c10::Error where `run` waits for the device.
std::function<void()> captured(const std::function<void()>& run, const at::Device& device);

}  // namespace transpool
