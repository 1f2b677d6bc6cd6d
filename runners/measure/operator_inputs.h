#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>

namespace transpool {

/// Random scores (B, n) float32 of a distribution by its name in the setting `scores`: uniform on [0, 1]; gaussian;
/// two_peaked, a sixteenth of the rows near 1 and the others near 0; near_ties, 0.5 to within 1e-4; all_low, all under
/// 1e-3; trained_like, the paper's scorer sigmoid(logit) + 1e-5 on logits of which a sixteenth stand out.
at::Tensor draw_scores(const std::string& distribution, std::int64_t batch, std::int64_t n,
                       const at::TensorOptions& options);

/// Lengths (B,) int64 for the setting `lengths`: nothing for `full`, else from half of n to n at random.
std::optional<at::Tensor> draw_lengths(const std::string& kind, std::int64_t batch, std::int64_t n,
                                       const at::Device& device);

/// A seed drawn from the global generator, for noise that several passes shall share.
std::uint64_t draw_seed();

}  // namespace transpool
