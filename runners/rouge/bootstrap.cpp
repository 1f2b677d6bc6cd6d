#include "runners/rouge/bootstrap.h"

#include "operators/error.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <string>

namespace transpool {
namespace {

/// A uniform index below `count`. The standard fixes the generator's numbers but not those of its distributions, so the
/// mapping is our own: scale by a multiplication, and redraw the few numbers that would favour some indices.
std::size_t draw_index(std::mt19937_64& generator, std::uint32_t count) {
  const std::uint32_t unfair = (0u - count) % count;
  for (;;) {
    const std::uint64_t scaled = (generator() >> 32) * count;
    if (static_cast<std::uint32_t>(scaled) >= unfair) return static_cast<std::size_t>(scaled >> 32);
  }
}

void check(std::size_t count, int resamples, double confidence) {
  if (count == 0) throw UsageError("bootstrap: there are no documents to draw from");
  if (count > std::numeric_limits<std::uint32_t>::max()) throw UsageError("bootstrap: more than 4294967295 documents");
  if (resamples < 1) throw UsageError("bootstrap: resamples is " + std::to_string(resamples) + ", allowed: 1 or more");
  if (!(confidence > 0 && confidence < 1))
    throw UsageError("bootstrap: confidence is " + std::to_string(confidence) + ", allowed: between 0 and 1");
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double resampled_mean(const std::vector<double>& values, std::mt19937_64& generator) {
  const auto count = static_cast<std::uint32_t>(values.size());
  double sum = 0;
  for (std::uint32_t i = 0; i < count; ++i) sum += values[draw_index(generator, count)];
  return sum / static_cast<double>(count);
}

}  // namespace

Interval bootstrap_mean(const std::vector<double>& values, std::uint64_t seed, int resamples, double confidence) {
  check(values.size(), resamples, confidence);
  std::mt19937_64 generator(seed);
  std::vector<double> means(static_cast<std::size_t>(resamples));
  for (auto& one : means) one = resampled_mean(values, generator);
  std::sort(means.begin(), means.end());
  // Whole means are left out at either end, rather than interpolated between: a sum of products may be rounded once or
  // twice, as the machine likes. The small addend undoes the rounding of 1 - confidence.
  const double tail = static_cast<double>(resamples) * (1 - confidence) / 2;
  const auto left_out = std::min(static_cast<std::size_t>(std::floor(tail + 1e-9)), (means.size() - 1) / 2);
  return {mean(values), means[left_out], means[means.size() - 1 - left_out]};
}

Interval paired_bootstrap_difference(const std::vector<double>& a, const std::vector<double>& b, std::uint64_t seed,
                                     int resamples, double confidence) {
  if (a.size() != b.size())
    throw UsageError("paired bootstrap: " + std::to_string(a.size()) + " documents against " + std::to_string(b.size()) +
                     "; both sides must score the same documents in the same order");
  std::vector<double> differences(a.size());
  std::transform(a.begin(), a.end(), b.begin(), differences.begin(), [](double x, double y) { return x - y; });
  return bootstrap_mean(differences, seed, resamples, confidence);
}

}  // namespace transpool
