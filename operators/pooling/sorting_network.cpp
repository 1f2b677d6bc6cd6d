#include "operators/pooling/mixture.h"
#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <numbers>

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// Wire i of a stage meets wire i + stride where i / stride is even; blocks of `block` wires sort downwards and upwards in
/// turn.
struct Stage {
  std::int64_t block, stride;
};

std::int64_t wires_for(std::int64_t n) {
  std::int64_t wires = 1;
  while (wires < n) wires *= 2;
  return wires;
}

/// Batcher's bitonic network on that many wires (a power of two), first stage first.
std::vector<Stage> bitonic_stages(std::int64_t wires) {
  std::vector<Stage> stages;
  for (std::int64_t block = 2; block <= wires; block *= 2)
    for (std::int64_t stride = block / 2; stride >= 1; stride /= 2) stages.push_back({block, stride});
  return stages;
}

/// (..., wires) as (..., wires / (2 stride), 2, stride): both ends of each comparator side by side.
at::Tensor by_comparator(const at::Tensor& wires, std::int64_t stride) {
  auto shape = wires.sizes().vec();
  shape.back() = wires.size(-1) / (2 * stride);
  shape.insert(shape.end(), {2, stride});
  return wires.reshape(shape);
}

/// Mixes both ends of each comparator: first' = keep first + (1 - keep) second, second' the other way round. A stage is
/// symmetric as a matrix, so that this also runs the network backwards. state (..., wires), keep (..., wires / 2).
at::Tensor mix_stage(const at::Tensor& state, const at::Tensor& keep, std::int64_t stride) {
  const auto pairs = by_comparator(state, stride);
  const auto first = pairs.select(-2, 0);
  const auto second = pairs.select(-2, 1);
  auto shape = keep.sizes().vec();
  shape.back() /= stride;
  shape.push_back(stride);
  const auto share = keep.reshape(shape);
  const auto other = 1 - share;
  return at::stack({first * share + second * other, first * other + second * share}, -2).view(state.sizes());
}

/// Keeps of all stages (stages, B, wires / 2) -> the first k rows of the network's matrix (B, k, wires), by running k unit
/// vectors from the outputs back to the inputs. The backward pass needs the state before each stage; it is computed again by
/// bisection, so that log2(stages) states are alive at a time instead of all.
class NetworkRowsFunction : public torch::autograd::Function<NetworkRowsFunction> {
 public:
  static Variable forward(AutogradContext* context, const at::Tensor& keeps, std::int64_t k) {
    const auto wires = 2 * keeps.size(2);
    context->save_for_backward({keeps});
    context->saved_data["k"] = k;
    const auto stages = bitonic_stages(wires);
    return run_back(keeps, stages, outputs(keeps, k), 0, stages.size());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto keeps = context->get_saved_variables()[0];
    const auto stages = bitonic_stages(2 * keeps.size(2));
    auto result = at::empty_like(keeps);
    descend(keeps, stages, outputs(keeps, context->saved_data["k"].toInt()), gradients[0], 0, stages.size(), result);
    return {result, Variable()};
  }

 private:
  static at::Tensor outputs(const at::Tensor& keeps, std::int64_t k) {
    return at::eye(k, 2 * keeps.size(2), keeps.options()).expand({keeps.size(1), k, 2 * keeps.size(2)});
  }

  /// The state at the inputs of stage `begin`, from that at the outputs of stage `end` - 1.
  static at::Tensor run_back(const at::Tensor& keeps, const std::vector<Stage>& stages, at::Tensor state, std::size_t begin,
                             std::size_t end) {
    for (std::size_t i = end; i-- > begin;)
      state = mix_stage(state, keeps[static_cast<std::int64_t>(i)].unsqueeze(1), stages[i].stride);
    return state;
  }

  /// Fills the gradients of stages [begin, end), given the state at their outputs and the state's gradient at their inputs;
  /// returns the gradient at their outputs.
  static at::Tensor descend(const at::Tensor& keeps, const std::vector<Stage>& stages, const at::Tensor& state,
                            const at::Tensor& gradient, std::size_t begin, std::size_t end, at::Tensor& result) {
    if (end - begin > 1) {
      const auto middle = begin + (end - begin) / 2;
      const auto lower =
          descend(keeps, stages, run_back(keeps, stages, state, middle, end), gradient, begin, middle, result);
      return descend(keeps, stages, state, lower, middle, end, result);
    }
    const auto stride = stages[begin].stride;
    const auto index = static_cast<std::int64_t>(begin);
    const auto values = by_comparator(state, stride);
    const auto slopes = by_comparator(gradient, stride);
    const auto lead = values.select(-2, 0) - values.select(-2, 1);
    result[index].copy_((lead * (slopes.select(-2, 0) - slopes.select(-2, 1))).sum(1).flatten(1));
    return mix_stage(gradient, keeps[index].unsqueeze(1), stride);
  }
};

/// Applies the swaps to the scores alone, and gives how much each comparator keeps its wires apart as they are.
class ScoreNetwork {
 public:
  ScoreNetwork(bool cauchy, double temperature) : cauchy_(cauchy), temperature_(temperature) {}

  /// scores (B, wires) float64, finite; padded (B, wires) bool, or undefined: wires that lose against all others and keep
  /// their places among themselves. -> (stages, B, wires / 2).
  at::Tensor keeps(at::Tensor scores, at::Tensor padded) const {
    std::vector<at::Tensor> all;
    for (const auto& stage : bitonic_stages(scores.size(1))) {
      const auto keep = keep_of(scores, padded, stage);
      scores = mix_stage(scores, keep, stage.stride);
      if (padded.defined()) padded = mix_stage(padded.to(at::kDouble), keep.detach(), stage.stride) > 0.5;
      all.push_back(keep);
    }
    return at::stack(all);
  }

 private:
  at::Tensor keep_of(const at::Tensor& scores, const at::Tensor& padded, const Stage& stage) const {
    const auto pairs = by_comparator(scores, stage.stride);
    const auto lead = pairs.select(-2, 0) - pairs.select(-2, 1);
    const auto first_wire = at::arange(lead.size(1), lead.options().dtype(at::kLong)).unsqueeze(1) * (2 * stage.stride);
    const auto falling = first_wire.bitwise_and(stage.block) == 0;
    const auto sign = falling.to(lead.scalar_type()) * (2 / temperature_) - 1 / temperature_;
    auto keep = distribution(lead * sign);
    if (padded.defined()) {
      const auto lost = by_comparator(padded, stage.stride);
      const auto first = lost.select(-2, 0);
      const auto second = lost.select(-2, 1);
      const auto hard = (first == second).logical_or(second == falling);
      keep = at::where(first.logical_or(second), hard.to(keep.scalar_type()), keep);
    }
    return keep.flatten(1);
  }

  at::Tensor distribution(const at::Tensor& z) const { return cauchy_ ? z.atan() / std::numbers::pi + 0.5 : z.sigmoid(); }

  bool cauchy_;
  double temperature_;
};

bool is_cauchy(const Options& options) { return options.text("distribution") == "cauchy"; }

class SortingNetwork : public PoolingOperator {
 public:
  explicit SortingNetwork(const Options& options) : network_(is_cauchy(options), options.real("temperature")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto n = scores.size(1);
    const auto wires = wires_for(n);
    const auto clean = clean_scores(scores, lengths);
    if (wires == 1) return mix_rows(x, scores, at::ones_like(scores).unsqueeze(1), lengths);
    at::Tensor padded;
    if (lengths) padded = valid_positions(*lengths, wires).logical_not_();
    else if (wires > n) padded = (at::arange(wires, scores.options()) >= n).expand({scores.size(0), wires});
    // In float64: each stage divides the differences of the last one's scores by the temperature.
    const auto keeps = network_.keeps(at::constant_pad_nd(clean.to(at::kDouble), {0, wires - n}), padded);
    const auto weights = NetworkRowsFunction::apply(keeps.to(scores.scalar_type()), k).narrow(2, 0, n);
    return mix_rows(x, scores, weights, lengths);
  }

 private:
  ScoreNetwork network_;
};

/// The network as a product of n x n matrices, one a stage, with the comparators listed by Batcher's recursion.
class SortingNetworkReference : public PoolingOperator {
 public:
  explicit SortingNetworkReference(const Options& options)
      : cauchy_(is_cauchy(options)), temperature_(options.real("temperature")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    std::int64_t wires = 1;
    while (wires < x.size(1)) wires *= 2;
    auto leaders = at::full({x.size(0), k}, -1, scores.options().dtype(at::kLong));
    auto pooled = mix_by_rows(x, scores, k, lengths, [&](const at::Tensor& row, std::int64_t outputs, std::int64_t b) {
      auto weights = matrix(row, wires).narrow(0, 0, outputs).narrow(1, 0, row.size(0));
      leaders[b].narrow(0, 0, outputs).copy_(leading_rows(weights.to(scores.scalar_type())));
      return weights;
    });
    pooled.positions = leaders;
    return pooled;
  }

 private:
  using Comparator = std::pair<std::int64_t, std::int64_t>;  // the wire for the higher score, then that for the lower
  using Stages = std::vector<std::vector<Comparator>>;

  /// Merges a bitonic sequence on wires [low, low + count) from stage `depth` on.
  static void merge(Stages& stages, std::size_t depth, std::int64_t low, std::int64_t count, bool falling) {
    if (count == 1) return;
    if (stages.size() <= depth) stages.resize(depth + 1);
    const auto half = count / 2;
    for (std::int64_t i = low; i < low + half; ++i)
      stages[depth].push_back(falling ? Comparator{i, i + half} : Comparator{i + half, i});
    merge(stages, depth + 1, low, half, falling);
    merge(stages, depth + 1, low + half, half, falling);
  }

  /// Sorts both halves in opposite directions, then merges. Returns the number of stages.
  static std::size_t sort(Stages& stages, std::int64_t low, std::int64_t count, bool falling) {
    if (count == 1) return 0;
    const auto depth = sort(stages, low, count / 2, true);
    sort(stages, low + count / 2, count / 2, false);
    merge(stages, depth, low, count, falling);
    std::size_t merging = 0;
    for (auto rest = count; rest > 1; rest /= 2) ++merging;
    return depth + merging;
  }

  at::Tensor matrix(const at::Tensor& scores, std::int64_t wires) const {
    Stages stages;
    sort(stages, 0, wires, true);
    std::vector<bool> real(static_cast<std::size_t>(wires));
    std::fill_n(real.begin(), scores.size(0), true);
    auto values = at::constant_pad_nd(scores, {0, wires - scores.size(0)});
    auto product = at::eye(wires, scores.options());
    for (const auto& stage : stages) {
      const auto step = stage_matrix(stage, values, real);
      values = at::mv(step, values);
      product = at::mm(step, product);
    }
    return product;
  }

  /// One stage as a matrix; moves the marks of real wires along.
  at::Tensor stage_matrix(const std::vector<Comparator>& stage, const at::Tensor& values, std::vector<bool>& real) const {
    std::vector<std::int64_t> highs, lows;
    std::vector<double> fixed;
    for (const auto& [high, low] : stage) {
      const auto h = static_cast<std::size_t>(high), l = static_cast<std::size_t>(low);
      highs.push_back(high);
      lows.push_back(low);
      // Between two empty wires nothing moves; an empty one gives way to a real one.
      const bool swaps_in = real[l] && !real[h];
      fixed.push_back(real[h] && real[l] ? -1 : (swaps_in ? 0 : 1));
      if (swaps_in) {
        real[h] = true;
        real[l] = false;
      }
    }
    const auto h = at::tensor(highs, values.options().dtype(at::kLong));
    const auto l = at::tensor(lows, values.options().dtype(at::kLong));
    const auto forced = at::tensor(fixed, values.options());
    const auto z = (values.index_select(0, h) - values.index_select(0, l)) / temperature_;
    const auto soft = cauchy_ ? at::atan2(z, at::ones_like(z)) / std::numbers::pi + 0.5 : (1 + (z / 2).tanh()) / 2;
    const auto keep = at::where(forced < 0, soft, forced);
    auto step = at::zeros({values.size(0), values.size(0)}, values.options());
    step = step.index_put({h, h}, keep).index_put({l, l}, keep);
    return step.index_put({h, l}, 1 - keep).index_put({l, h}, 1 - keep);
  }

  bool cauchy_;
  double temperature_;
};

Cost sorting_network_cost(const PoolingShape& shape, const Options&) {
  const auto wires = wires_for(shape.length);
  const auto stages = static_cast<double>(bitonic_stages(wires).size());
  const auto comparators = static_cast<double>(shape.batch * wires) / 2 * stages;
  auto cost = mixture_cost(shape, /*kept_weights=*/1);
  // The weights of the padded wires stand in the same tensor. Of each comparator: the scores of both wires, its keep in
  // float64 and in the scores' dtype, 1 - keep, and the keep before padding is dealt with or the argument of atan; and
  // which comparators padding decides.
  const auto padding = static_cast<double>(shape.batch * shape.pooled_length * (wires - shape.length));
  const auto score = static_cast<double>(score_bytes(shape.dtype));
  cost.activation_bytes += padding * score + comparators * (5 * sizeof(double) + score + 1);
  return cost;
}

const RegisterPooling registration({
    {.name = "sorting_network",
     .description = "differentiable bitonic sorting network with soft swaps; its first k wires",
     .source =
         "arXiv 2105.04019, softened conditional swaps f(b - a) (logistic); arXiv 2203.09630, f = atan / pi + 1/2 (Cauchy)",
     .options = {{.name = "distribution",
                  .type = OptionType::choice,
                  .fallback = "cauchy",
                  .meaning = "cumulative distribution function of the soft swaps",
                  .choices = {"logistic", "cauchy"}},
                 {.name = "temperature",
                  .type = OptionType::real,
                  .fallback = 0.01,
                  .meaning = "score difference per unit of the distribution's argument (1 / the papers' steepness)",
                  .minimum = 1e-6,
                  .maximum = 1e4}}},
    [](const Options& options) { return std::make_shared<SortingNetwork>(options); },
    [](const Options& options) { return std::make_shared<SortingNetworkReference>(options); },
    sorting_network_cost,
    /*distinct_rows=*/false,
    /*sharp=*/{{"distribution", "logistic"}, {"temperature", 1e-4}},
});

}  // namespace
}  // namespace transpool
