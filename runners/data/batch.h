#pragma once

#include "runners/data/document.h"
#include "runners/data/tokenizer.h"

#include <cstdint>
#include <span>
#include <vector>

namespace transpool {

/// One document as token ids. The target ends with eos and has no bos.
struct Example {
  std::vector<std::int32_t> source;
  std::vector<std::int32_t> target;
};

/// Examples in the order of the split's documents, and what was cut.
struct EncodedSplit {
  std::vector<Example> examples;
  /// documents, and for source and target: documents_cut, tokens (before cutting), tokens_kept, tokens_cut, longest
  /// (before cutting), unknown. The target's eos counts as a token.
  Json counts = Json::object();
};

/// Encodes and cuts to at most `source_length` and `target_length` tokens. A cut target still ends with eos.
/// Throws std::invalid_argument where a length is below 1.
EncodedSplit encode_split(const Split& split, const Tokenizer& tokenizer, std::int64_t source_length,
                          std::int64_t target_length);

/// Shuffled epochs of index batches, all of the same size, the same on every platform.
///
/// The epochs' orders are one endless stream that is cut into batches, so each example comes once per epoch though the
/// batch size need not divide their number: the batch at the border of two epochs takes from both.
class Batcher {
 public:
  /// Where the stream stands: `position` examples of `epoch` have been given out.
  struct State {
    std::uint64_t epoch = 0;
    std::uint64_t position = 0;
    bool operator==(const State&) const = default;
  };

  /// Batches of `batch` of `examples` indices. Throws std::invalid_argument where either is below 1.
  Batcher(std::int64_t examples, std::int64_t batch, std::uint64_t seed);

  /// As above, with batches of similar lengths: within each run of `window` batches of the shuffled order the examples are
  /// sorted by length, and then whole batches are shuffled. `window` 1 or less buckets nothing.
  Batcher(std::vector<std::int64_t> lengths, std::int64_t batch, std::uint64_t seed, std::int64_t window);

  /// The next batch's indices.
  std::vector<std::int64_t> next();

  State state() const { return state_; }

  /// Goes on from a state of a batcher made with the same arguments. Throws std::invalid_argument where it is not one.
  void restore(State state);

 private:
  void start_epoch(std::uint64_t epoch);
  void bucket(std::uint64_t epoch);

  std::vector<std::int64_t> lengths_;
  std::uint64_t examples_;
  std::uint64_t batch_;
  std::uint64_t seed_;
  std::int64_t window_ = 1;
  State state_;
  std::vector<std::int64_t> order_;  ///< of the current epoch
};

/// A batch in row-major (batch, width) arrays, filled up with Tokenizer::pad.
struct PaddedBatch {
  std::vector<std::int64_t> source;
  std::vector<std::int64_t> target_in;   ///< bos and the target without its eos: what the decoder sees
  std::vector<std::int64_t> target_out;  ///< the target with its eos: what it shall say
  std::vector<std::int64_t> source_lengths;
  std::vector<std::int64_t> target_lengths;
  std::int64_t batch = 0;
  std::int64_t source_width = 0;
  std::int64_t target_width = 0;
};

/// Pads the chosen examples to the longest among them, or the sources to `fixed_source_width` where that is not 0.
/// Throws std::invalid_argument where a source is longer than that.
PaddedBatch pad_batch(const std::vector<Example>& examples, std::span<const std::int64_t> indices,
                      std::int64_t fixed_source_width = 0);

}  // namespace transpool
