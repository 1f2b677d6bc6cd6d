#include "runners/data/batch.h"

#include "runners/data/random.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace transpool {
namespace {

/// Cuts to `limit` ids and counts what that loses.
struct Cutter {
  std::int64_t limit;
  std::int64_t documents_cut = 0, tokens = 0, kept = 0, longest = 0, unknown = 0;

  void cut(std::vector<std::int32_t>& ids, bool ends_with_eos) {
    const auto length = static_cast<std::int64_t>(ids.size());
    tokens += length;
    longest = std::max(longest, length);
    if (length > limit) {
      ++documents_cut;
      ids.resize(static_cast<std::size_t>(limit));
      if (ends_with_eos) ids.back() = Tokenizer::eos;
    }
    kept += static_cast<std::int64_t>(ids.size());
    unknown += std::count(ids.begin(), ids.end(), Tokenizer::unknown);
  }

  Json counts() const {
    return Json{{"documents_cut", documents_cut}, {"tokens", tokens},   {"tokens_kept", kept},
                {"tokens_cut", tokens - kept},    {"longest", longest}, {"unknown", unknown}};
  }
};

std::int64_t width_of(const std::vector<Example>& examples, std::span<const std::int64_t> indices,
                      std::vector<std::int32_t> Example::*part) {
  std::size_t width = 1;
  for (const auto index : indices) width = std::max(width, (examples.at(static_cast<std::size_t>(index)).*part).size());
  return static_cast<std::int64_t>(width);
}

}  // namespace

EncodedSplit encode_split(const Split& split, const Tokenizer& tokenizer, std::int64_t source_length,
                          std::int64_t target_length) {
  if (source_length < 1 || target_length < 1) throw std::invalid_argument("texts are cut to lengths of 1 or more");
  EncodedSplit encoded;
  Cutter sources{source_length}, targets{target_length};
  for (const auto& document : split.documents) {
    Example example{tokenizer.encode(document.source), tokenizer.encode(document.target)};
    example.target.push_back(Tokenizer::eos);
    sources.cut(example.source, false);
    targets.cut(example.target, true);
    encoded.examples.push_back(std::move(example));
  }
  encoded.counts = {{"documents", split.documents.size()}, {"source", sources.counts()}, {"target", targets.counts()}};
  return encoded;
}

Batcher::Batcher(std::int64_t examples, std::int64_t batch, std::uint64_t seed)
    : Batcher(std::vector<std::int64_t>(static_cast<std::size_t>(std::max<std::int64_t>(0, examples)), 0), batch, seed, 1) {}

Batcher::Batcher(std::vector<std::int64_t> lengths, std::int64_t batch, std::uint64_t seed, std::int64_t window)
    : lengths_(std::move(lengths)),
      examples_(lengths_.size()),
      batch_(static_cast<std::uint64_t>(batch)),
      seed_(seed),
      window_(window) {
  if (lengths_.empty() || batch < 1)
    throw std::invalid_argument("a batcher needs at least one example and a batch of at least 1");
  start_epoch(0);
}

std::vector<std::int64_t> Batcher::next() {
  std::vector<std::int64_t> indices;
  while (indices.size() < batch_) {
    if (state_.position == examples_) start_epoch(state_.epoch + 1);
    indices.push_back(order_[state_.position++]);
  }
  return indices;
}

void Batcher::restore(State state) {
  if (state.position > examples_) throw std::invalid_argument("this batcher has no such state");
  start_epoch(state.epoch);
  state_.position = state.position;
}

void Batcher::start_epoch(std::uint64_t epoch) {
  state_ = {epoch, 0};
  order_.resize(examples_);
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  Random random(seed_ * 0x100000001b3ULL + epoch);
  random.shuffle(order_);
  if (window_ > 1) bucket(epoch);
}

void Batcher::bucket(std::uint64_t epoch) {
  const auto run = static_cast<std::size_t>(window_) * batch_;
  Random random(seed_ * 0x100000001b3ULL + epoch + 0x5bd1e995ULL);
  // The epoch's first examples may complete the last batch of the epoch before: whole batches start after those.
  const auto shared = (batch_ - epoch % batch_ * (examples_ % batch_) % batch_) % batch_;
  for (std::size_t start = std::min<std::size_t>(shared, order_.size()); start < order_.size(); start += run) {
    const auto end = std::min(order_.size(), start + run);
    const auto first = order_.begin() + static_cast<std::ptrdiff_t>(start);
    const auto last = order_.begin() + static_cast<std::ptrdiff_t>(end);
    std::stable_sort(first, last, [&](auto a, auto b) {
      return lengths_[static_cast<std::size_t>(a)] < lengths_[static_cast<std::size_t>(b)];
    });
    std::vector<std::size_t> batches((end - start) / batch_);
    std::iota(batches.begin(), batches.end(), std::size_t{0});
    random.shuffle(batches);
    const std::vector<std::int64_t> sorted(first, last);
    for (std::size_t b = 0; b < batches.size(); ++b)
      std::copy_n(sorted.begin() + static_cast<std::ptrdiff_t>(batches[b] * batch_), batch_,
                  first + static_cast<std::ptrdiff_t>(b * batch_));
  }
}

PaddedBatch pad_batch(const std::vector<Example>& examples, std::span<const std::int64_t> indices,
                      std::int64_t fixed_source_width) {
  PaddedBatch batch;
  batch.batch = static_cast<std::int64_t>(indices.size());
  batch.source_width = width_of(examples, indices, &Example::source);
  if (fixed_source_width != 0) {
    if (batch.source_width > fixed_source_width) throw std::invalid_argument("a source is longer than the fixed width");
    batch.source_width = fixed_source_width;
  }
  batch.target_width = width_of(examples, indices, &Example::target);
  const auto cells = [&](std::int64_t width) {
    return std::vector<std::int64_t>(static_cast<std::size_t>(batch.batch * width), Tokenizer::pad);
  };
  batch.source = cells(batch.source_width);
  batch.target_in = cells(batch.target_width);
  batch.target_out = cells(batch.target_width);
  for (std::size_t row = 0; row < indices.size(); ++row) {
    const auto& example = examples.at(static_cast<std::size_t>(indices[row]));
    std::copy(example.source.begin(), example.source.end(),
              batch.source.begin() + static_cast<std::ptrdiff_t>(row) * batch.source_width);
    const auto target = static_cast<std::ptrdiff_t>(row) * batch.target_width;
    std::copy(example.target.begin(), example.target.end(), batch.target_out.begin() + target);
    batch.target_in[static_cast<std::size_t>(target)] = Tokenizer::bos;
    if (!example.target.empty())
      std::copy(example.target.begin(), example.target.end() - 1, batch.target_in.begin() + target + 1);
    batch.source_lengths.push_back(static_cast<std::int64_t>(example.source.size()));
    batch.target_lengths.push_back(static_cast<std::int64_t>(example.target.size()));
  }
  return batch;
}

}  // namespace transpool
