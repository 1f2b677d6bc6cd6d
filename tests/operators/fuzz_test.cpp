// ctest-labels: slow
#include "operators/pooling/pooling.h"
#include "tests/operators/variants.h"

#include <fmt/format.h>
#include <torch/cuda.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

// Pooling operators on random shapes, options, dtypes, lengths and distributions, forward and backward, against their
// references in float64. On a CUDA device: those with a kernel there, larger, against the reference where it can be had and
// else against what the CPU gives.
//   TRANSPOOL_FUZZ_SECONDS  how long (default 20)
//   TRANSPOOL_FUZZ_DEVICE   cpu or cuda (default: cuda where there is one)
//   TRANSPOOL_FUZZ_SEED     replays the one case of that seed, as a failure names it

namespace transpool {
namespace {

using Lengths = std::optional<at::Tensor>;

constexpr double infinity = std::numeric_limits<double>::infinity();

std::string environment(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value == nullptr ? fallback : value;
}

/// Random numbers of one case.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}

  double real(double low, double high) { return std::uniform_real_distribution<>(low, high)(engine_); }
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  bool chance(double share) { return real(0, 1) < share; }
  /// Small sizes as often as large ones.
  std::int64_t size(std::int64_t low, std::int64_t high) {
    const double drawn = std::exp(real(std::log(static_cast<double>(low)), std::log(static_cast<double>(high) + 1)));
    return std::clamp(static_cast<std::int64_t>(drawn), low, high);
  }
  template <class T>
  const T& one_of(const std::vector<T>& all) {
    return all[static_cast<std::size_t>(integer(0, static_cast<std::int64_t>(all.size()) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

struct Case {
  std::uint64_t seed = 0;
  const PoolingVariant* variant = nullptr;
  Json value;  ///< the variant with its options
  PoolingShape shape;
  std::string scores, rows, lengths;

  std::string text() const {
    return fmt::format("TRANSPOOL_FUZZ_SEED={}: {} batch {} n {} k {} d {} {}, scores {}, rows {}, lengths {}", seed,
                       value.dump(), shape.batch, shape.length, shape.pooled_length, shape.width, dtype_name(shape.dtype),
                       scores, rows, lengths);
  }
};

/// A value within the range of the option, not far from its default.
Json draw_option(const OptionSpec& spec, Dice& dice) {
  switch (spec.type) {
    case OptionType::boolean: return dice.chance(0.5);
    case OptionType::choice: return dice.one_of(spec.choices);
    case OptionType::integer: {
      if (spec.name == "seed") return dice.integer(0, 1 << 30);
      if (spec.fallback.is_null()) return nullptr;
      const double usual = spec.fallback.get<double>();
      // No less than the default: fewer iterations would not converge, and the reference need not stop at the same place.
      return dice.integer(static_cast<std::int64_t>(usual),
                          static_cast<std::int64_t>(std::min(spec.maximum, usual * 4 + 1)));
    }
    case OptionType::real: {
      if (!spec.fallback.is_number()) return nullptr;
      const double drawn = spec.fallback.get<double>() * std::pow(10.0, dice.real(-0.7, 0.7));
      return std::clamp(drawn, spec.minimum, spec.maximum);
    }
    default: return nullptr;
  }
}

Json draw_options(const PoolingVariant& variant, Dice& dice) {
  Json value = {{"name", variant.name}};
  const bool defaults = dice.chance(0.3);
  for (const auto& spec : variant.options) {
    if (defaults && spec.name != "seed") continue;
    const auto drawn = draw_option(spec, dice);
    if (!drawn.is_null()) value[spec.name] = drawn;
  }
  return value;
}

/// Shapes whose reference takes no longer than a moment.
PoolingShape draw_shape(const PoolingVariant& variant, const Options& options, bool cuda, Dice& dice) {
  PoolingShape shape;
  shape.dtype = dice.one_of<at::ScalarType>(variant.capabilities.stochastic
                                                ? std::vector<at::ScalarType>{at::kDouble}
                                                : std::vector{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf});
  for (int attempt = 0;; ++attempt) {
    const std::int64_t most = (cuda ? 20000 : 100) >> std::min(attempt / 4, 12);
    shape.batch = dice.chance(0.03) ? 0 : dice.integer(1, 5);
    shape.length = dice.size(1, std::max<std::int64_t>(most, 1));
    shape.pooled_length = dice.chance(0.1) ? shape.length : dice.size(1, shape.length);
    shape.width = dice.one_of<std::int64_t>({1, 2, 3, 7, 8, 16, 31, 64, 65, 128});
    if (variant.capabilities.pooled_length_divides_length && shape.length % shape.pooled_length != 0) continue;
    const auto cost = variant.cost(shape, options);
    const double limit = cuda ? 1e8 : 4e6;
    if (cost.flops + cost.backward_flops <= limit && cost.activation_bytes <= limit) return shape;
  }
}

std::vector<const PoolingVariant*> variants_for(const at::Device& device) {
  std::vector<const PoolingVariant*> all;
  for (const auto& [name, variant] : pooling_registry().all()) {
    if (!runs_by_name(variant)) continue;
    if (device.is_cuda()) {
      if (variant.capabilities.stochastic) continue;  // the devices draw other numbers
      if (variant.make(pooling_registry().select(name).options)->backend(device) != "cuda") continue;
    }
    all.push_back(&variant);
  }
  return all;
}

Case draw_case(std::uint64_t seed, const at::Device& device) {
  Dice dice(seed);
  Case c;
  c.seed = seed;
  c.variant = dice.one_of(variants_for(device));
  c.value = draw_options(*c.variant, dice);
  c.shape = draw_shape(*c.variant, pooling_registry().select(c.value).options, device.is_cuda(), dice);
  c.scores = dice.one_of<std::string>({"uniform", "uniform", "gaussian", "ties", "constant", "infinite", "huge", "tiny"});
  c.rows = dice.one_of<std::string>({"gaussian", "gaussian", "large", "small"});
  if (c.shape.dtype == at::kHalf) {  // whose largest number is 65504
    if (c.scores == "huge") c.scores = "uniform";
    if (c.rows == "large") c.rows = "gaussian";
  }
  // Those that select by the rows: very long ones attend to themselves alone and are all alike.
  const auto op = c.variant->make(pooling_registry().select(c.value).options);
  if (c.rows == "large" && !op->passes_score_gradient()) c.rows = "gaussian";
  c.lengths = dice.one_of<std::string>({"full", "full", "random", "short"});
  return c;
}

at::Tensor draw_scores(const std::string& kind, std::int64_t batch, std::int64_t n) {
  const auto uniform = at::rand({batch, n}, at::kDouble);
  if (kind == "gaussian") return at::randn({batch, n}, at::kDouble);
  if (kind == "ties") return at::floor(uniform * 4) / 4;
  if (kind == "constant") return at::full({batch, n}, 0.5, at::kDouble);
  if (kind == "huge") return at::randn({batch, n}, at::kDouble) * 1e4;
  if (kind == "tiny") return at::randn({batch, n}, at::kDouble) * 1e-8;
  if (kind != "infinite") return uniform;
  const auto which = at::rand({batch, n});
  return uniform.masked_fill(which < 0.1, infinity)
      .masked_fill(which > 0.8, -infinity)
      .masked_fill(which > 0.9, std::nan(""));
}

Lengths draw_lengths(const std::string& kind, std::int64_t batch, std::int64_t n) {
  if (kind == "full") return std::nullopt;
  return at::randint(0, (kind == "short" ? std::min<std::int64_t>(n, 3) : n) + 1, {batch}, at::kLong);
}

struct Inputs {
  at::Tensor x, scores, cotangent;
  Lengths lengths;
};

Inputs draw_inputs(const Case& c) {
  at::manual_seed(c.seed);
  const auto& s = c.shape;
  const auto dtype = at::TensorOptions().dtype(at::kDouble);
  Inputs in;
  in.x = at::randn({s.batch, s.length, s.width}, dtype);
  if (c.rows == "large") in.x = in.x * 100;
  if (c.rows == "small") in.x = in.x / 100;
  in.x = in.x.to(s.dtype);
  in.scores = draw_scores(c.scores, s.batch, s.length).to(s.dtype == at::kDouble ? at::kDouble : at::kFloat);
  in.cotangent = at::randn({s.batch, s.pooled_length, s.width}, dtype).to(s.dtype);
  in.lengths = draw_lengths(c.lengths, s.batch, s.length);
  return in;
}

/// What one pass gives, on the CPU in float64; a gradient that is not reached is zero.
struct Results {
  at::Tensor values, scores, positions, x_gradient, score_gradient;
};

Results run(const PoolingOperator& op, const Inputs& in, std::int64_t k, const at::Device& device, bool backward) {
  const auto x = in.x.to(device).detach().clone().requires_grad_(backward);
  const auto scores = in.scores.to(device).detach().clone().requires_grad_(backward);
  const auto pooled = op.forward(x, scores, k, in.lengths ? Lengths(in.lengths->to(device)) : std::nullopt);
  const auto host = [](const at::Tensor& t) { return t.defined() ? t.detach().to(at::kCPU, at::kDouble) : t; };
  Results all{host(pooled.values), host(pooled.scores), pooled.positions.to(at::kCPU), at::zeros_like(in.x, at::kDouble),
              at::zeros_like(in.scores, at::kDouble)};
  if (!backward || !pooled.values.requires_grad()) return all;
  const auto gradients =
      torch::autograd::grad({pooled.values}, {x, scores}, {in.cotangent.to(device)}, std::nullopt, false, true);
  if (gradients[0].defined()) all.x_gradient = host(gradients[0]);
  if (gradients[1].defined()) all.score_gradient = host(gradients[1]);
  return all;
}

Inputs in_float64(const Inputs& in) {
  return {in.x.to(at::kDouble), in.scores.to(at::kDouble), in.cotangent.to(at::kDouble), in.lengths};
}

double rounding(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 1e-6 : dtype == at::kHalf ? 1e-3 : 8e-3;
}

/// Inputs moved by what rounding does to them. Equal scores stay equal, so that ties are still decided by the rule.
Inputs nudged(const Inputs& in, const Case& c) {
  const auto factor = [&](const at::Tensor& t, double by) { return t * (1 + by * (2 * at::rand_like(t) - 1)); };
  const double by = rounding(c.shape.dtype);
  const double wave = at::rand({1}, at::kDouble).item<double>() * 1e3;
  const double score_by = std::min(by, rounding(at::kFloat));
  const auto bend = at::where(in.scores.isfinite(), at::sin(in.scores * wave + wave), at::zeros_like(in.scores));
  return {factor(in.x, by), in.scores * (1 + score_by * bend), factor(in.cotangent, by), in.lengths};
}

/// Distances of rows (last dimension), of elements where there are no rows. Infinity and NaN are at distance 0 from
/// themselves and infinitely far from all else.
at::Tensor distances(const at::Tensor& a, const at::Tensor& b) {
  const auto same = (a == b).logical_or(a.isnan().logical_and(b.isnan()));
  const auto apart = at::where(same, at::zeros_like(a), (a - b).abs()).nan_to_num(infinity, infinity, infinity);
  return apart.dim() == 3 ? apart.norm(2, {2}) : apart;
}

/// Where `found` is further from `expected` than rounding takes `expected` from itself: "" or the first such place.
std::string disagreement(const std::string& name, const at::Tensor& found, const at::Tensor& expected,
                         const std::vector<at::Tensor>& moved, double by, double smallest, const at::Tensor& batch_rows) {
  if (found.numel() == 0) return "";
  if (found.sizes() != expected.sizes()) return name + " has another shape";
  const auto zero = at::zeros_like(expected);
  const auto size = distances(expected.nan_to_num(0, 0, 0), zero);
  auto allowed = 16 * by * (size + size.mean());
  for (const auto& other : moved) allowed = at::maximum(allowed, 16 * distances(other, expected));
  const auto wrong = (distances(found, expected) > allowed.nan_to_num(infinity, infinity, infinity) + smallest)
                         .logical_and(batch_rows.unsqueeze(1));
  if (!wrong.any().item<bool>()) return "";
  const auto place = wrong.nonzero()[0];
  const auto b = place[0].item<std::int64_t>(), i = place[1].item<std::int64_t>();
  return fmt::format("{}: {} of {} disagree, the first in batch row {} at {}: distance {:.3g}, allowed {:.3g}", name,
                     wrong.sum().item<std::int64_t>(), wrong.numel(), b, i, distances(found, expected)[b][i].item<double>(),
                     allowed[b][i].item<double>());
}

/// Positions must be equal where no nudge changed them; a free mixture may be led by several rows alike.
std::string disagreement(const Case& c, const at::Tensor& found, const at::Tensor& expected,
                         const std::vector<at::Tensor>& moved) {
  if (found.sizes() != expected.sizes()) return "positions have another shape";
  if (found.numel() == 0) return "";
  if (((found < -1).logical_or(found >= c.shape.length)).any().item<bool>()) return "positions are out of range";
  if ((found == -1).ne(expected == -1).any().item<bool>()) return "other output rows are empty";
  if (!c.variant->distinct_rows) return "";
  auto wrong = found != expected;
  for (const auto& other : moved) wrong = wrong.logical_and(other == expected);
  if (!wrong.any().item<bool>()) return "";
  const auto place = wrong.nonzero()[0];
  const auto b = place[0].item<std::int64_t>(), i = place[1].item<std::int64_t>();
  return fmt::format("positions: {} disagree, the first in batch row {} at {}: {} against {}",
                     wrong.sum().item<std::int64_t>(), b, i, found[b][i].item<std::int64_t>(),
                     expected[b][i].item<std::int64_t>());
}

/// What a difference of scores is multiplied by, at least 1.
double sharpness(const Case& c) {
  const auto options = pooling_registry().select(c.value).options;
  if (options.has("alpha")) return std::max(1.0, options.real("alpha"));
  return options.has("temperature") ? std::max(1.0, 1 / options.real("temperature")) : 1;
}

/// "" or what differs by more than rounding, and by more than `moved` shows that rounding of the inputs makes of it.
std::string compare(const Case& c, const Inputs& in, const Results& found, const Results& expected,
                    const std::vector<Results>& moved) {
  const auto all = [&](at::Tensor Results::*member) {
    std::vector<at::Tensor> tensors;
    for (const auto& one : moved) tensors.push_back(one.*member);
    return tensors;
  };
  if (auto problem = disagreement(c, found.positions, expected.positions, all(&Results::positions)); !problem.empty())
    return problem;
  // Steps that end where sums of weights hold to 1e-12 do not end at the same digits everywhere; a weight far under 1 then
  // has fewer digits of its own.
  const bool in_steps = c.variant->name == "soft_topk";
  const double by = std::max(rounding(c.shape.dtype), in_steps ? 1e-10 : 0);
  // Below what the dtype holds, or float32 where sums are taken in it, a result may become zero.
  const double smallest = c.shape.dtype == at::kDouble ? 1e-290 : c.shape.dtype == at::kHalf ? 1e-6 : 1e-30;
  // Where a tie that rounding decides gave another selection, nothing else of that batch row can be compared.
  const auto agree =
      c.variant->distinct_rows ? (found.positions == expected.positions).all(1) : at::ones({c.shape.batch}, at::kBool);
  const auto judge = [&](const std::string& name, at::Tensor Results::*member, double precision, double floor) {
    return disagreement(name, found.*member, expected.*member, all(member), precision, floor, agree);
  };
  // A gradient of a score is a sum of products <x, cotangent> that may cancel, times the sharpness of the operator.
  const auto usual_norm = [](const at::Tensor& rows) { return rows.to(at::kDouble).norm(2, {2}).mean().item<double>(); };
  const double weighed = (in_steps ? 1e-11 : 0) * usual_norm(in.cotangent);
  const double product = 64 * std::sqrt(static_cast<double>(c.shape.pooled_length)) * by * usual_norm(in.x) *
                         usual_norm(in.cotangent) * sharpness(c);
  // Means of scores, or of what stands for infinity, cancel.
  const double of_scores = c.variant->distinct_rows ? 0 : 16e-6 * in.scores.nan_to_num(0, 0, 0).abs().mean().item<double>();
  const double mean = c.scores == "infinite" ? 1e-2 : of_scores + smallest;
  for (const auto& problem : {judge("values", &Results::values, by, smallest),
                              judge("scores", &Results::scores, std::min(by, rounding(at::kFloat)), mean),
                              judge("gradient of x", &Results::x_gradient, by, weighed + smallest),
                              judge("gradient of the scores", &Results::score_gradient, by, product + smallest)})
    if (!problem.empty()) return problem;
  return "";
}

/// The case's operator as it is judged in float64: what `skip` leaves out is still measured by the case's own dtype.
Json judged(const Case& c) {
  Json value = c.value;
  if (value.value("skip", "") != "auto") return value;
  value["skip"] = "epsilon";
  const auto dtype = c.shape.dtype;
  value["epsilon"] = dtype == at::kDouble ? 0x1p-54 : dtype == at::kFloat ? 0x1p-25 : dtype == at::kHalf ? 0x1p-12 : 0x1p-9;
  return value;
}

/// "" or what is wrong with the case.
std::string try_case(const Case& c, const at::Device& device) {
  const auto options = pooling_registry().select(c.value).options;
  const auto op = c.variant->make(options);
  const auto in = draw_inputs(c);
  const auto k = c.shape.pooled_length;
  const bool backward = c.variant->capabilities.differentiable;
  if (c.shape.batch == 0) {
    const auto message = message_of([&] { run(*op, in, k, device, backward); });
    return message.find("batch 0") != std::string::npos ? "" : "a batch of 0: " + message;
  }
  const auto found = run(*op, in, k, device, backward);
  // References go row by row: beyond these sizes the CPU's own operator stands in.
  const bool small = c.shape.batch * c.shape.length <= 4000 && c.shape.length * k <= 200000;
  // A straight-through gradient is no derivative: references do not have it.
  const bool derived = !(options.has("gradient") && options.text("gradient") == "straight_through");
  // What a relaxation makes of scores that are infinite, or far apart, is beyond the digits of its reference.
  const bool relaxed = !c.variant->distinct_rows || options.has("temperature");
  const bool moderate = c.scores != "infinite" && c.scores != "huge";
  const auto judged_options = pooling_registry().select(judged(c)).options;
  const auto judge =
      small && derived && (moderate || !relaxed) ? c.variant->reference(judged_options) : c.variant->make(judged_options);
  const auto exact = in_float64(in);
  const auto expected = run(*judge, exact, k, at::kCPU, backward);
  const auto by_rounding_alone = compare(c, in, found, expected, {});
  if (by_rounding_alone.empty()) return "";
  std::vector<Results> moved;
  for (int i = 0; i < 4; ++i) moved.push_back(run(*judge, nudged(exact, c), k, at::kCPU, backward));
  return compare(c, in, found, expected, moved);
}

std::string outcome(const Case& c, const at::Device& device) {
  try {
    return try_case(c, device);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return "it threw: " + text.substr(0, text.find('\n'));
  }
}

TEST(Fuzz, PoolingOperatorsAgreeWithTheirReferencesOnRandomCases) {
  const auto name = environment("TRANSPOOL_FUZZ_DEVICE", torch::cuda::is_available() ? "cuda" : "cpu");
  if (name == "cuda" && !torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  const at::Device device(name);
  if (variants_for(device).empty()) GTEST_SKIP() << "no variant has a kernel for " << name;
  if (const auto seed = environment("TRANSPOOL_FUZZ_SEED", ""); !seed.empty()) {
    const auto c = draw_case(std::stoull(seed), device);
    EXPECT_EQ(outcome(c, device), "") << c.text();
    return;
  }
  const std::chrono::duration<double> time(std::stod(environment("TRANSPOOL_FUZZ_SECONDS", "20")));
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t seed = std::random_device()();
  std::map<std::string, int> cases;
  int failures = 0;
  for (; std::chrono::steady_clock::now() - begin < time && failures < 10; ++seed) {
    const auto c = draw_case(seed, device);
    const auto problem = outcome(c, device);
    ++cases[c.variant->name];
    if (problem.empty()) continue;
    ++failures;
    ADD_FAILURE() << problem << "\n" << c.text();
  }
  std::string counts;
  for (const auto& [variant, count] : cases) counts += fmt::format(" {} {}", variant, count);
  std::cout << "cases on " << name << ":" << counts << "\n";
}

}  // namespace
}  // namespace transpool
