#include "runners/rouge/bootstrap.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "operators/error.h"

namespace transpool {
namespace {

std::vector<double> ramp(int count) {
  std::vector<double> values;
  for (int i = 0; i < count; ++i) values.push_back(i);
  return values;
}

TEST(BootstrapMean, HasThePlainMeanAsItsValue) { EXPECT_DOUBLE_EQ(bootstrap_mean({1, 2, 6}, 0).value, 3); }

TEST(BootstrapMean, IsAPointForEqualValues) {
  const auto interval = bootstrap_mean({0.25, 0.25, 0.25}, 0);
  EXPECT_EQ(interval.low, 0.25);
  EXPECT_EQ(interval.high, 0.25);
}

TEST(BootstrapMean, IsTheSameForTheSameSeedOnEveryPlatform) {
  const auto interval = bootstrap_mean(ramp(7), 42);
  EXPECT_EQ(interval.low, 11.0 / 7);
  EXPECT_EQ(interval.high, 31.0 / 7);
}

TEST(BootstrapMean, ChangesWithTheSeed) { EXPECT_NE(bootstrap_mean(ramp(100), 1).low, bootstrap_mean(ramp(100), 2).low); }

TEST(BootstrapMean, IsAsWideAsTheCentralLimitTheoremSays) {
  const int count = 400;
  const auto interval = bootstrap_mean(ramp(count), 3, 4000);
  const double standard_error = std::sqrt((count * count - 1.0) / 12) / std::sqrt(count);
  EXPECT_NEAR(interval.high - interval.low, 2 * 1.96 * standard_error, 0.3 * standard_error);
  EXPECT_NEAR((interval.high + interval.low) / 2, interval.value, 0.2 * standard_error);
}

TEST(BootstrapMean, NarrowsWithTheConfidence) {
  const auto wide = bootstrap_mean(ramp(50), 0, 1000, 0.99);
  const auto narrow = bootstrap_mean(ramp(50), 0, 1000, 0.5);
  EXPECT_LT(wide.low, narrow.low);
  EXPECT_GT(wide.high, narrow.high);
}

TEST(BootstrapMean, RefusesWhatHasNoInterval) {
  EXPECT_THROW(bootstrap_mean({}, 0), UsageError);
  EXPECT_THROW(bootstrap_mean({1}, 0, 0), UsageError);
  EXPECT_THROW(bootstrap_mean({1}, 0, 10, 1), UsageError);
  EXPECT_THROW(bootstrap_mean({1}, 0, 10, std::nan("")), UsageError);
}

TEST(PairedBootstrapDifference, SeesASmallConstantGainThatTheSpreadOfDocumentsWouldHide) {
  const auto b = ramp(100);
  auto a = b;
  for (auto& value : a) value += 0.5;
  const auto interval = paired_bootstrap_difference(a, b, 0);
  EXPECT_DOUBLE_EQ(interval.value, 0.5);
  EXPECT_DOUBLE_EQ(interval.low, 0.5);
  EXPECT_DOUBLE_EQ(interval.high, 0.5);
}

TEST(PairedBootstrapDifference, RefusesListsOfDifferentDocuments) {
  EXPECT_THROW(paired_bootstrap_difference({1, 2}, {1}, 0), UsageError);
}

}  // namespace
}  // namespace transpool
