// ctest-labels: gpu
#include "operators/registry.h"
#include "runners/measure/cuda_graph.h"
#include "runners/measure/level.h"
#include "runners/measure/memory.h"
#include "runners/measure/timing.h"
#include "tests/operators/variants.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/cuda.h>
#include <torch/utils.h>

#include <chrono>
#include <thread>

namespace transpool {
namespace {

using testing::HasSubstr;
using testing::Not;

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
    EXPECT_TRUE(
        at::ones({1 << 20}, at::TensorOptions().pinned_memory(true)).to(device_, /*non_blocking=*/true).all().item<bool>());
    EXPECT_EQ(count_launches([&] { a.add_(1); }, device_).kernels, 1);
  }
}

TEST_F(LaunchesCuda, ACaptureThatFailsSaysWhyAndSpoilsNothing) {
  const auto a = at::rand({16}, device_);
  for (int time = 0; time < 2; ++time) {
    at::manual_seed(1);
    const auto expected = at::rand({100}, device_);
    at::manual_seed(1);
    EXPECT_THAT(message_of([&] { captured([&] { a.sum().item<float>(); }, device_); }),
                testing::AllOf(HasSubstr("cannot be captured"), HasSubstr("timing.graph"), Not(HasSubstr("\n"))));
    EXPECT_TRUE(at::equal(at::rand({100}, device_), expected)) << "the generator";
    EXPECT_TRUE(
        at::ones({1 << 20}, at::TensorOptions().pinned_memory(true)).to(device_, /*non_blocking=*/true).all().item<bool>());
    const auto b = at::zeros({16}, device_);
    captured([&] { b.add_(1); }, device_)();
    EXPECT_EQ(b.sum().item<float>(), 16 * 4) << "three warm-ups and one replay";
  }
}

TEST_F(LaunchesCuda, WhatARunThrowsItselfIsNotTheCaptures) {
  int runs = 0;
  const auto fail = [&] {
    if (++runs == 4) throw Unsupported("no such shape");
  };
  EXPECT_THROW(captured(fail, device_), Unsupported);
  EXPECT_EQ(count_launches([&] { at::rand({4}, device_); }, device_).reason, "");
}

TEST_F(LaunchesCuda, AGraphDrawsOtherNumbersInEachReplay) {
  at::Tensor drawn;
  const auto replay = captured([&] { drawn = at::rand({100}, device_); }, device_);
  replay();
  const auto first = drawn.clone();
  replay();
  EXPECT_FALSE(at::equal(drawn, first));
  at::manual_seed(1);
  replay();
  const auto seeded = drawn.clone();
  at::manual_seed(1);
  replay();
  EXPECT_TRUE(at::equal(drawn, seeded));
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

TEST_F(LaunchesCuda, TheWorkspaceIsWhatIsNeitherInputNorResult) {
  const auto use = measure_memory(
      [&] {
        const auto scratch = at::empty({3 << 20}, at::TensorOptions().device(device_).dtype(at::kByte));
        return std::vector{at::empty({1 << 20}, scratch.options())};
      },
      device_);
  EXPECT_EQ(use.delta, 4 << 20);
  EXPECT_EQ(use.workspace, 3 << 20);
}

Record measured(const std::string& level, const Json& fixed, const std::vector<std::string>& measure) {
  Json values = {{"batch", 2}, {"source_length", 2048}, {"pooled_length", 128}, {"width", 64}, {"timing.max_samples", 20}};
  values.update(fixed);
  const auto experiment = experiment_from_json(
      {{"name", "launches"}, {"level", level}, {"measure", measure}, {"fixed", values}}, "launches.json", "cuda");
  return measure_cell(experiment.cells.front());
}

TEST_F(LaunchesCuda, APassThatTheHostLaunchesMoreSlowlyThanTheDeviceIsHeldBackIsHostBound) {
  const auto a = at::rand({1024}, device_);
  const auto host_bound_by = [&](std::chrono::milliseconds pause) {
    PassClock clock(device_, /*head_start=*/true);
    for (int pass = 0; pass < 4; ++pass)
      clock.time([&] {
        a.add_(1);
        std::this_thread::sleep_for(pause);
      });
    return clock.host_bound();
  };
  EXPECT_EQ(host_bound_by(std::chrono::milliseconds(0)), 0);
  EXPECT_EQ(host_bound_by(std::chrono::milliseconds(100)), 1);
}

TEST_F(LaunchesCuda, RecordsOfOperatorsHoldLaunchesWorkspaceBackendAndTheShareOfTheirBound) {
  for (const auto* kind : {"pooling", "attention"})
    for (const auto* pass : {"forward", "forward+backward"}) {
      const auto record =
          measured("operator", {{"operator", kind}, {"pass", pass}}, {"time", "memory", "flops", "roofline"});
      ASSERT_EQ(record.status, Status::ok) << record.reason;
      for (const auto* name : {"kernel_launches", "memory_launches", "workspace", "bound_share"})
        ASSERT_NE(find_summary(record, name), nullptr) << name;
      EXPECT_GE(find_summary(record, "kernel_launches")->value, 1) << record.details["launches"];
      EXPECT_GE(find_summary(record, "workspace")->value, 0);
      EXPECT_GT(find_summary(record, "bound_share")->value, 0);
      EXPECT_LE(find_summary(record, "bound_share")->value, 110) << record.details["roofline"];
      EXPECT_TRUE(record.details["backend"][kind].is_string());
    }
}

TEST_F(LaunchesCuda, RecordsOfLayersHoldLaunches) {
  const auto record = measured("layer", {{"heads", 2}, {"pass", "forward"}}, {"memory"});
  ASSERT_EQ(record.status, Status::ok) << record.reason;
  ASSERT_NE(find_summary(record, "kernel_launches"), nullptr);
  EXPECT_GE(find_summary(record, "kernel_launches")->value, 5) << record.details["launches"];
}

TEST_F(LaunchesCuda, ABackendThatWouldNotRunIsUnsupported) {
  EXPECT_EQ(measured("operator", {{"pooling", "successive_halving"}, {"backend", "cuda"}}, {"memory"}).status, Status::ok);
  const auto refused = measured("operator", {{"pooling", "first_k"}, {"backend", "nothing"}}, {"memory"});
  EXPECT_EQ(refused.status, Status::unsupported);
  EXPECT_THAT(refused.reason, HasSubstr("on cuda; asked for: \"nothing\""));
}

}  // namespace
}  // namespace transpool
