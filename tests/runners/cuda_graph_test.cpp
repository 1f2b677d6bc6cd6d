#include "runners/measure/cuda_graph.h"

#include "operators/error.h"
#include "tests/operators/variants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace transpool {
namespace {

TEST(CudaGraph, OnTheCpuACaptureIsUnsupportedAndRunsNothing) {
  bool ran = false;
  EXPECT_THROW(captured([&] { ran = true; }, at::kCPU), Unsupported);
  EXPECT_THAT(message_of([&] { captured([&] { ran = true; }, at::kCPU); }), testing::HasSubstr("timing.graph"));
  EXPECT_FALSE(ran);
}

TEST(CudaGraph, OnTheCpuLaunchesHaveAReasonInsteadOfACount) {
  bool ran = false;
  const auto found = count_launches([&] { ran = true; }, at::kCPU);
  EXPECT_NE(found.reason, "");
  EXPECT_FALSE(ran);
}

TEST(CudaGraph, AFailureIsToldInOneLine) {
  const std::runtime_error error("CUDA error: operation not permitted when stream is capturing\nCompile with ...\nframe #0");
  EXPECT_EQ(capture_failure(error),
            "the pass cannot be captured as a CUDA graph: CUDA error: operation not permitted when stream is capturing");
  EXPECT_EQ(capture_failure(std::runtime_error("no")), "the pass cannot be captured as a CUDA graph: no");
}

}  // namespace
}  // namespace transpool
