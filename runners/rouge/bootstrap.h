#pragma once

#include <cstdint>
#include <vector>

namespace transpool {

/// A figure with a confidence interval.
struct Interval {
  double value = 0;
  double low = 0;
  double high = 0;
};

inline constexpr int default_resamples = 1000;
inline constexpr double default_confidence = 0.95;

/// The plain mean over documents and its percentile bootstrap interval: documents are drawn with replacement `resamples`
/// times, and the interval holds the central share `confidence` of the means. The same seed gives the same interval on
/// every platform. Throws UsageError for no values, fewer than 1 resample, or a confidence outside 0 to 1.
Interval bootstrap_mean(const std::vector<double>& values, std::uint64_t seed, int resamples = default_resamples,
                        double confidence = default_confidence);

/// The mean of a[i] - b[i] with its interval, where a[i] and b[i] are of the same document: each resample draws documents,
/// not scores, so that what makes a document hard for both cancels. Throws UsageError as well if the lengths differ.
Interval paired_bootstrap_difference(const std::vector<double>& a, const std::vector<double>& b, std::uint64_t seed,
                                     int resamples = default_resamples, double confidence = default_confidence);

}  // namespace transpool
