#pragma once

#include "models/seq2seq.h"

namespace transpool {

struct GenerationConfig {
  std::int64_t max_length = 256;  ///< tokens, eos included
  std::int64_t min_length = 0;    ///< eos is barred before
  std::int32_t bos = 1;
  std::int32_t eos = 2;
  bool stop_early = true;  ///< stop when every row has said eos; else always max_length steps, for timing
};

/// Greedy decoding. source (B, n) int64 -> tokens (B, t) int64 without bos; after a row's eos comes only eos.
torch::Tensor generate_greedy(Seq2Seq& model, const torch::Tensor& source, const std::optional<torch::Tensor>& lengths,
                              const GenerationConfig& config);

}  // namespace transpool
