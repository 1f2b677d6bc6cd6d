#include "runners/measure/ceilings.h"

#include "runners/measure/timing.h"

#include <ATen/core/grad_mode.h>

#include <map>

namespace transpool {
namespace {

double seconds_of(const at::Device& device, const std::function<void()>& run) {
  constexpr int warmups = 2, samples = 11;
  PassClock clock(device, /*head_start=*/true);
  for (int i = 0; i < warmups; ++i) run();
  std::vector<double> times;
  for (int i = 0; i < samples; ++i) times.push_back(clock.time(run));
  return summarize_times(times).median / 1e3;
}

double measure_copy(const at::Device& device) {
  const std::int64_t bytes = std::int64_t{1} << (device.is_cuda() ? 30 : 26);  // well beyond every cache
  const auto from = at::zeros({bytes}, at::TensorOptions().device(device).dtype(at::kByte));
  const auto to = at::empty_like(from);
  return 2 * static_cast<double>(bytes) / seconds_of(device, [&] { to.copy_(from); });
}

double measure_product(const at::Device& device, at::ScalarType dtype) {
  const std::int64_t n = device.is_cuda() ? 8192 : 512;
  const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
  const auto a = at::randn({n, n}, options).to(dtype), b = at::randn({n, n}, options).to(dtype);
  auto out = at::empty_like(a);
  const auto work = 2 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  return work / seconds_of(device, [&] { at::mm_out(out, a, b); });
}

}  // namespace

const Ceilings& measured_ceilings(const at::Device& device, at::ScalarType dtype) {
  static std::map<at::DeviceType, double> copies;
  static std::map<std::pair<at::DeviceType, at::ScalarType>, Ceilings> all;
  const auto key = std::pair(device.type(), dtype);
  if (const auto known = all.find(key); known != all.end()) return known->second;
  const at::NoGradGuard off;
  if (!copies.contains(device.type())) copies[device.type()] = measure_copy(device);
  return all[key] = {copies[device.type()], measure_product(device, dtype)};
}

}  // namespace transpool
