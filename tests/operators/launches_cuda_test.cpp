// ctest-labels: gpu
#include "operators/registry.h"
#include "runners/measure/cuda_graph.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/cuda.h>
#include <torch/utils.h>

namespace transpool {
namespace {

using testing::HasSubstr;

class LaunchesCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  }

  const at::Device device_{at::kCUDA, 0};
};

TEST_F(LaunchesCuda, KernelsAndCopiesAreCountedApart) {
  const auto a = at::rand({1024}, device_), b = at::empty_like(a);
  const auto found = count_launches(
      [&] {
        a.add_(1);
        a.mul_(2);
        b.copy_(a);
        b.exp_();
      },
      device_);
  EXPECT_EQ(found.reason, "");
  EXPECT_EQ(found.kernels, 3);
  EXPECT_EQ(found.copies, 1);
  EXPECT_EQ(found.fills, 0);
}

TEST_F(LaunchesCuda, APassThatWaitsForTheDeviceHasAReasonAndSpoilsNothing) {
  const auto a = at::rand({16}, device_);
  for (int time = 0; time < 2; ++time) {
    const auto found = count_launches([&] { a.sum().item<float>(); }, device_);
    EXPECT_THAT(found.reason, HasSubstr("cannot be captured"));
    EXPECT_EQ(found.kernels, 0);
    EXPECT_TRUE(at::rand({1 << 20}, device_).sum().item<float>() > 0);
    EXPECT_EQ(count_launches([&] { a.add_(1); }, device_).kernels, 1);
  }
}

TEST_F(LaunchesCuda, CountingDrawsNoNumbersOfTheCallers) {
  at::manual_seed(1);
  const auto expected = at::rand({100}, device_);
  at::manual_seed(1);
  const auto found = count_launches([&] { at::rand({100}, device_); }, device_);
  EXPECT_EQ(found.reason, "");
  EXPECT_GE(found.kernels, 1);
  EXPECT_TRUE(at::equal(at::rand({100}, device_), expected));
}

}  // namespace
}  // namespace transpool
