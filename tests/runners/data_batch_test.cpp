#include "runners/data/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

namespace transpool {
namespace {

std::vector<std::int64_t> take(Batcher& batcher, int batches) {
  std::vector<std::int64_t> indices;
  for (int i = 0; i < batches; ++i)
    for (const auto index : batcher.next()) indices.push_back(index);
  return indices;
}

TEST(Batching, OrderIsTheSameOnEveryMachine) {
  Batcher batcher(5, 2, 42);
  const auto indices = take(batcher, 5);
  EXPECT_EQ(indices, (std::vector<std::int64_t>{3, 1, 4, 0, 2, 0, 2, 3, 1, 4}));
}

TEST(Batching, EachEpochHasEachExampleOnceThoughBatchesCrossItsBorder) {
  for (const std::int64_t window : {1, 2, 4})
    for (const std::int64_t batch : {1, 3, 7, 10, 25}) {
      Batcher batcher({3, 1, 4, 1, 5, 9, 2, 6, 5, 3}, batch, 7, window);
      const auto indices = take(batcher, 10);
      ASSERT_EQ(indices.size(), static_cast<std::size_t>(10 * batch));
      for (std::int64_t epoch = 0; epoch < batch; ++epoch) {
        std::vector<std::int64_t> seen(indices.begin() + epoch * 10, indices.begin() + epoch * 10 + 10);
        std::sort(seen.begin(), seen.end());
        EXPECT_EQ(seen, (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}))
            << "batch " << batch << " window " << window;
      }
    }
}

TEST(Batching, ResumesInTheMiddleOfAnEpochAndAtItsBorder) {
  for (int done = 0; done < 9; ++done) {
    Batcher one({3, 1, 4, 1, 5, 9, 2}, 3, 7, 2), other({3, 1, 4, 1, 5, 9, 2}, 3, 7, 2);
    take(one, done);
    other.restore(one.state());
    EXPECT_EQ(take(one, 6), take(other, 6)) << done;
  }
  EXPECT_THROW(Batcher(5, 2, 0).restore({0, 6}), std::invalid_argument);
}

TEST(Batching, BucketsKeepWholeBatchesOfOneLengthInEveryEpoch) {
  // Ten examples of each of ten lengths and one more: the batches of later epochs start elsewhere.
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < 101; ++i) lengths.push_back(i / 10);
  Batcher batcher(lengths, 5, 1, 21);
  for (int epoch = 0; epoch < 5; ++epoch) {
    int mixed = 0;
    for (int i = 0; i < 20; ++i) {
      const auto batch = batcher.next();
      const auto [low, high] = std::minmax_element(batch.begin(), batch.end());
      mixed += lengths[static_cast<std::size_t>(*high)] - lengths[static_cast<std::size_t>(*low)] > 1;
    }
    EXPECT_LE(mixed, 1) << "epoch " << epoch << ": only the batch at its border may mix lengths";
  }
}

TEST(Batching, NothingToBatchIsRefused) {
  EXPECT_THROW(Batcher(0, 2, 0), std::invalid_argument);
  EXPECT_THROW(Batcher(2, 0, 0), std::invalid_argument);
}

TEST(Padding, FillsUpToTheLongestAndShiftsTheTarget) {
  const std::vector<Example> examples = {{{7, 8, 9}, {5, 6, Tokenizer::eos}}, {{7}, {Tokenizer::eos}}};
  const auto batch = pad_batch(examples, std::vector<std::int64_t>{1, 0});
  EXPECT_EQ(batch.source, (std::vector<std::int64_t>{7, 0, 0, 7, 8, 9}));
  EXPECT_EQ(batch.target_in, (std::vector<std::int64_t>{1, 0, 0, 1, 5, 6}));
  EXPECT_EQ(batch.target_out, (std::vector<std::int64_t>{2, 0, 0, 5, 6, 2}));
  EXPECT_EQ(batch.source_lengths, (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(batch.target_lengths, (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(pad_batch(examples, std::vector<std::int64_t>{1}, 4).source, (std::vector<std::int64_t>{7, 0, 0, 0}));
  EXPECT_THROW(pad_batch(examples, std::vector<std::int64_t>{0}, 2), std::invalid_argument);
}

}  // namespace
}  // namespace transpool
