#pragma once

#include "operators/options.h"
#include "runners/report/record.h"

#include <ATen/ATen.h>

#include <functional>

namespace transpool {

struct TimingOptions {
  std::int64_t warmup = 3;
  std::int64_t min_samples = 10;
  std::int64_t max_samples = 200;
  double target_error = 0.01;  ///< relative standard error of the median
  double cap_seconds = 10;
  bool head_start = false;  ///< see PassClock
};

TimingOptions timing_options(const Options& values);

struct Timing {
  std::vector<double> samples;  ///< ms, in the order they were taken
  double median = 0;
  double low = 0, high = 0;   ///< 95 % interval of the median, from order statistics
  double relative_error = 0;  ///< half the interval's width over 1.96 medians
  bool capped = false;        ///< the time cap ended sampling before the target was met
  /// Of the samples: in how many the device, for all its head start, was through with waiting before the host had launched
  /// the pass, so that they may be as long as the host took.
  double host_bound = 0;
};

/// Times `run` after warm-up: CUDA events around it with the L2 overwritten before each sample, or a monotonic clock on
/// the CPU. `redraw` gives new inputs before each sample and is not timed.
Timing time_runs(const std::function<void()>& run, const std::function<void()>& redraw, const at::Device& device,
                 const TimingOptions& options);

/// Times single passes by the clock of `time_runs`. With a head start a CUDA device waits before a pass until the host
/// should have launched it, so that a pass of short kernels is not as long as the host takes to launch them.
class PassClock {
 public:
  explicit PassClock(const at::Device& device, bool head_start = false);

  /// Milliseconds of one pass, synchronised before and after.
  double time(const std::function<void()>& run);

  /// Of the passes so far: see `Timing::host_bound`.
  double host_bound() const { return passes_ > 0 ? host_bound_ / passes_ : 0; }

 private:
  double time_on_cuda(const std::function<void()>& run);

  at::Device device_;
  bool head_start_;
  double launching_ = 1;  // ms that the host took for the pass before
  double passes_ = 0, host_bound_ = 0;
  at::Tensor flush_;
};

/// Median and its distribution-free 95 % interval.
Timing summarize_times(std::vector<double> samples);

}  // namespace transpool
