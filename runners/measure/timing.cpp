#include "runners/measure/timing.h"

#include "runners/measure/device.h"

#ifdef TRANSPOOL_CUDA
#include <ATen/cuda/Sleep.h>
#endif
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace transpool {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double sample_cpu(const std::function<void()>& run) {
  const auto start = Clock::now();
  run();
  return milliseconds_since(start);
}

/// The current stream does nothing for about so long.
void wait_on_cuda([[maybe_unused]] double milliseconds) {
#ifdef TRANSPOOL_CUDA
  constexpr double cycles_per_ms = 2e6;  // of the fastest clock: slower ones wait longer
  at::cuda::sleep(static_cast<std::int64_t>(milliseconds * cycles_per_ms));
#endif
}

}  // namespace

TimingOptions timing_options(const Options& values) {
  return {values.integer("timing.warmup"), values.integer("timing.min_samples"), values.integer("timing.max_samples"),
          values.real("timing.target_error"), values.real("timing.cap_seconds")};
}

Timing summarize_times(std::vector<double> samples) {
  Timing timing;
  timing.samples = samples;
  std::sort(samples.begin(), samples.end());
  const auto n = static_cast<double>(samples.size());
  const auto at_rank = [&](double rank) { return samples[static_cast<std::size_t>(std::clamp(rank, 0.0, n - 1))]; };
  timing.median = (at_rank(std::floor((n - 1) / 2)) + at_rank(std::ceil((n - 1) / 2))) / 2;
  const double spread = 1.96 * std::sqrt(n) / 2;
  timing.low = at_rank(std::floor((n - 1) / 2 - spread));
  timing.high = at_rank(std::ceil((n - 1) / 2 + spread));
  timing.relative_error = timing.median > 0 ? (timing.high - timing.low) / (2 * 1.96 * timing.median) : 0;
  return timing;
}

PassClock::PassClock(const at::Device& device, bool head_start) : device_(device), head_start_(head_start) {
  // Twice the largest L2 of today's devices.
  if (device.is_cuda()) flush_ = at::empty({256 << 20}, at::TensorOptions().dtype(at::kByte).device(device));
}

double PassClock::time_on_cuda(const std::function<void()>& run) {
  const auto stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  c10::Event start(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event end(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  flush_.zero_();
  // A pass of more launches than the device queues holds the host up until the wait is over: it must end.
  constexpr double longest = 20;
  if (head_start_) wait_on_cuda(std::min(longest, 2 * launching_ + 0.1));
  start.record(stream);
  launching_ = sample_cpu(run);
  passes_ += 1;
  host_bound_ += head_start_ && start.query() ? 1 : 0;
  end.record(stream);
  end.synchronize();
  return start.elapsedTime(end);
}

double PassClock::time(const std::function<void()>& run) {
  synchronize(device_);
  return device_.is_cuda() ? time_on_cuda(run) : sample_cpu(run);
}

Timing time_runs(const std::function<void()>& run, const std::function<void()>& redraw, const at::Device& device,
                 const TimingOptions& options) {
  PassClock clock(device, options.head_start);
  for (std::int64_t i = 0; i < options.warmup; ++i) run();
  synchronize(device);
  const auto start = Clock::now();
  std::vector<double> samples;
  while (static_cast<std::int64_t>(samples.size()) < options.max_samples) {
    if (redraw) redraw();
    samples.push_back(clock.time(run));
    const bool enough = static_cast<std::int64_t>(samples.size()) >= options.min_samples;
    if (enough && summarize_times(samples).relative_error <= options.target_error) break;
    if (milliseconds_since(start) > options.cap_seconds * 1e3 && samples.size() >= 3) break;
  }
  auto timing = summarize_times(samples);
  timing.capped = timing.relative_error > options.target_error;
  timing.host_bound = clock.host_bound();
  return timing;
}

}  // namespace transpool
