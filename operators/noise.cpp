#include "operators/noise.h"

#include <ATen/Context.h>
#include <c10/core/InferenceMode.h>

#include <list>
#include <mutex>

namespace transpool {
namespace {

struct Draw {
  std::vector<std::int64_t> shape;
  at::Device device;
  std::int64_t seed;

  bool operator==(const Draw&) const = default;
};

/// The last few draws, since a CUDA graph can capture the reading of a tensor, but not a generator of our own.
class KeptDraws {
 public:
  at::Tensor get(const Draw& draw) {
    const std::lock_guard lock(mutex_);
    for (auto kept = kept_.begin(); kept != kept_.end(); ++kept)
      if (kept->first == draw) {
        kept_.splice(kept_.begin(), kept_, kept);
        return kept_.front().second;
      }
    const c10::InferenceMode outside(false);  // autograd may save it
    const auto options = at::TensorOptions(draw.device).dtype(at::kFloat);
    kept_.emplace_front(draw, at::randn(draw.shape, seeded_generator(draw.seed, draw.device), options));
    if (kept_.size() > most) kept_.pop_back();
    return kept_.front().second;
  }

 private:
  static constexpr std::size_t most = 8;
  std::mutex mutex_;
  std::list<std::pair<Draw, at::Tensor>> kept_;
};

KeptDraws& kept_draws() {
  static auto* draws = new KeptDraws;  // outlives CUDA, whose memory it holds
  return *draws;
}

}  // namespace

OptionSpec seed_option(const std::string& drawn, const Json& fallback) {
  return {
      .name = "seed",
      .type = OptionType::integer,
      .fallback = fallback,
      .meaning = "of the " + drawn + ", the same in each call; null: torch's own generator, which draws anew in each call",
      .minimum = 0,
      .optional = true};
}

std::optional<std::int64_t> seed_of(const Options& options) {
  if (!options.has("seed")) return std::nullopt;
  return options.integer("seed");
}

std::optional<at::Generator> seeded_generator(const std::optional<std::int64_t>& seed, const at::Device& device) {
  if (!seed) return std::nullopt;
  auto generator = at::globalContext().defaultGenerator(device).clone();
  generator.set_current_seed(static_cast<std::uint64_t>(*seed));
  return generator;
}

std::optional<at::Generator> noise_generator(const Options& options, const at::Device& device) {
  return seeded_generator(seed_of(options), device);
}

at::Tensor seeded_normal(at::IntArrayRef shape, const at::Tensor& like, const std::optional<std::int64_t>& seed) {
  if (!seed) return at::randn(shape, like.options().dtype(at::kFloat));
  return kept_draws().get({shape.vec(), like.device(), *seed});
}

}  // namespace transpool
