#include "runners/measure/operator_inputs.h"

namespace transpool {

at::Tensor draw_scores(const std::string& distribution, std::int64_t batch, std::int64_t n,
                       const at::TensorOptions& options) {
  auto uniform = at::rand({batch, n}, options);
  if (distribution == "uniform") return uniform;
  if (distribution == "gaussian") return at::randn({batch, n}, options);
  if (distribution == "near_ties") return 0.5 + 1e-4 * uniform;
  if (distribution == "all_low") return 1e-5 + 1e-3 * uniform;
  const auto high = at::rand({batch, n}, options) < 0.0625;
  if (distribution == "two_peaked") return at::where(high, 0.95 + 0.05 * uniform, 0.05 * uniform);
  const auto logits = at::randn({batch, n}, options);  // trained_like
  return at::where(high, 3 + logits, logits - 4).sigmoid() + 1e-5;
}

std::optional<at::Tensor> draw_lengths(const std::string& kind, std::int64_t batch, std::int64_t n,
                                       const at::Device& device) {
  if (kind == "full") return std::nullopt;
  return at::randint((n + 1) / 2, n + 1, {batch}, at::TensorOptions().dtype(at::kLong).device(device));
}

std::uint64_t draw_seed() {
  return static_cast<std::uint64_t>(at::randint(0, std::int64_t{1} << 31, {1}, at::kLong).item<std::int64_t>());
}

}  // namespace transpool
