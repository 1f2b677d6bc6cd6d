#include "operators/host_kernel.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace transpool {
namespace {

TEST(InThreads, EveryNumberIsTakenOnce) {
  for (const std::int64_t count : {0, 1, 7, 1000})
    for (const std::int64_t grain : {0, 1, 3, 5000}) {
      std::vector<std::atomic<int>> taken(static_cast<std::size_t>(count));
      in_threads(count, grain, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = begin; i < end; ++i) ++taken[static_cast<std::size_t>(i)];
      });
      for (const auto& times : taken) EXPECT_EQ(times, 1) << "of " << count << " by " << grain;
    }
}

TEST(InThreads, PartsRunInThreadsOfTheirOwnUnlessTheGrainIsAll) {
  if (at::get_num_threads() < 2) GTEST_SKIP() << "one thread";
  const auto threads_of = [](std::int64_t grain) {
    std::mutex mutex;
    std::set<std::thread::id> threads;
    in_threads(64, grain, [&](std::int64_t, std::int64_t) {
      EXPECT_EQ(at::in_parallel_region(), grain < 64);
      const std::scoped_lock lock(mutex);
      threads.insert(std::this_thread::get_id());
    });
    return threads.size();
  };
  EXPECT_GT(threads_of(1), 1u);
  EXPECT_EQ(threads_of(64), 1u);
}

TEST(InThreads, WhatATaskThrowsArrives) {
  EXPECT_THROW(in_threads(8, 1, [](std::int64_t, std::int64_t) { throw std::runtime_error("no"); }), std::runtime_error);
}

}  // namespace
}  // namespace transpool
