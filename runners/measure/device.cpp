#include "runners/measure/device.h"

#include <torch/cuda.h>

namespace transpool {

at::Device device_from_name(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  if (name != "cuda") throw UsageError("--device: " + unknown_name_message("device", name, {"cpu", "cuda"}));
  if (!torch::cuda::is_available())
    throw UsageError("--device: cuda is not there: LibTorch finds no CUDA device on this machine; allowed: cpu");
  return at::Device(at::kCUDA, 0);
}

void synchronize(const at::Device& device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

}  // namespace transpool
