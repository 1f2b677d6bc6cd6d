#include "operators/pooling/tournament.h"

#include "operators/host_kernel.h"
#include "operators/pooling/selection.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <ranges>
#include <utility>

namespace transpool {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// One round on N rows: who met whom (indices into the round's input), and how much the stronger kept.
struct Round {
  at::Tensor stronger, weaker;              // (B, N/2) int64
  at::Tensor stronger_score, weaker_score;  // (B, N/2)
  at::Tensor share;                         // (B, N/2): w, the stronger's weight
};

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// softmax(B^s_a, B^s_b)[0] for s_a >= s_b, without inf - inf. A row scored -inf gives all its weight away.
at::Tensor stronger_share(const at::Tensor& a, const at::Tensor& b, double base) {
  const auto lead = at::pow(base, a) - at::pow(base, b);
  const auto share = at::nan_to_num(lead, std::numeric_limits<double>::infinity()).sigmoid_();
  return share.masked_fill_(b == lowest, 1).masked_fill_(a == b, 0.5);
}

/// w s_a + (1 - w) s_b, where an infinite score with all the weight stays itself.
at::Tensor mixed_score(const at::Tensor& a, const at::Tensor& b, const at::Tensor& share) {
  return at::where((share == 1) | (a == b), a, share * a + (1 - share) * b);
}

/// A float64 without NaN as a number that is lower the higher the score is.
std::uint64_t falling_key(double score) {
  const auto bits = std::bit_cast<std::uint64_t>(score + 0.0);  // -0 and 0 are equal
  constexpr std::uint64_t sign = std::uint64_t{1} << 63;
  return ~(bits & sign ? ~bits : bits | sign);
}

struct Ranked {
  std::uint64_t key;
  std::int64_t index;
};

/// Sorts by key, equal ones in the order given; `spare` has room for as many. Digit by digit where that pays.
void sort_ranked(std::vector<Ranked>& all, std::vector<Ranked>& spare) {
  constexpr std::size_t few = 512;
  constexpr int digit_bits = 11;
  constexpr std::size_t digits = std::size_t{1} << digit_bits;
  if (all.size() < few) {
    std::stable_sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) { return a.key < b.key; });
    return;
  }
  for (int shift = 0; shift < 64; shift += digit_bits) {
    const auto digit = [&](const Ranked& one) { return (one.key >> shift) & (digits - 1); };
    std::array<std::uint32_t, digits> next{};
    for (const auto& one : all) ++next[digit(one)];
    if (next[digit(all.front())] == all.size()) continue;  // all alike
    std::uint32_t start = 0;
    for (auto& count : next) start += std::exchange(count, start);
    for (const auto& one : all) spare[next[digit(one)]++] = one;
    std::swap(all, spare);
  }
}

/// Numbers that are summed while one is put in order.
constexpr std::int64_t sums_a_place = 32;

/// Indices (B, N) of float64 scores (B, N) in falling order, ties to the lower index. On a CPU by a sort of our own, which
/// is several times faster than the general one.
at::Tensor falling_order(const at::Tensor& scores) {
  if (!scores.is_cpu()) return std::get<1>(scores.sort(/*stable=*/true, 1, /*descending=*/true));
  const auto given = scores.contiguous();
  const auto n = given.size(1);
  auto order = at::empty(given.sizes(), given.options().dtype(at::kLong));
  const auto* from = given.const_data_ptr<double>();
  auto* to = order.mutable_data_ptr<std::int64_t>();
  in_threads(given.size(0), tasks_a_thread(sums_a_place * n), [&](std::int64_t begin, std::int64_t end) {
    std::vector<Ranked> all(static_cast<std::size_t>(n)), spare(static_cast<std::size_t>(n));
    for (std::int64_t b = begin; b < end; ++b) {
      for (std::int64_t i = 0; i < n; ++i) all[static_cast<std::size_t>(i)] = {falling_key(from[b * n + i]), i};
      sort_ranked(all, spare);
      for (std::int64_t i = 0; i < n; ++i) to[b * n + i] = all[static_cast<std::size_t>(i)].index;
    }
  });
  return order;
}

/// Indices (B, N) of distinct leaders (B, N), each from 0 to `places` - 1, in rising order: on a CPU by where they stand.
at::Tensor source_order(const at::Tensor& leaders, std::int64_t places) {
  if (!leaders.is_cpu()) return std::get<1>(leaders.sort(1));
  const auto given = leaders.contiguous();
  const auto n = given.size(1);
  auto order = at::empty_like(given);
  const auto* from = given.const_data_ptr<std::int64_t>();
  auto* to = order.mutable_data_ptr<std::int64_t>();
  in_threads(given.size(0), tasks_a_thread(places), [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> standing(static_cast<std::size_t>(places));
    for (std::int64_t b = begin; b < end; ++b) {
      std::fill(standing.begin(), standing.end(), -1);
      for (std::int64_t i = 0; i < n; ++i) standing[static_cast<std::size_t>(from[b * n + i])] = i;
      auto* next = to + b * n;
      for (const auto i : standing)
        if (i >= 0) *next++ = i;
    }
  });
  return order;
}

struct State {
  std::int64_t places;  // padded number of source rows
  at::Tensor scores;    // (B, N)
  at::Tensor leaders;   // (B, N) source row that leads each tree; n or more for padding
  at::Tensor real;      // (B, 1) how many of the N rows are real; null where all are
};

Round play(State& state, const TournamentOptions& options, bool padded) {
  const auto half = state.scores.size(1) / 2;
  const auto order = falling_order(comparable_scores(state.scores));
  Round round;
  round.stronger = order.narrow(1, 0, half);
  round.weaker = order.narrow(1, half, half);
  if (options.mirror) round.weaker = round.weaker.flip(1);
  round.stronger_score = state.scores.gather(1, round.stronger);
  round.weaker_score = state.scores.gather(1, round.weaker);
  round.share = stronger_share(round.stronger_score, round.weaker_score, options.base);
  if (padded) {
    auto weaker_rank = at::arange(half, 2 * half, order.options());
    if (options.mirror) weaker_rank = weaker_rank.flip(0);
    round.share.masked_fill_(weaker_rank.unsqueeze(0) >= state.real, 1);
    state.real = state.real.clamp_max(half);
  }
  state.leaders = state.leaders.gather(1, round.stronger);
  if (options.keep_order) {
    const auto back = source_order(state.leaders, state.places);
    state.leaders = state.leaders.gather(1, back);
    for (auto* part : {&round.stronger, &round.weaker, &round.stronger_score, &round.weaker_score, &round.share})
      *part = part->gather(1, back);
  }
  state.scores = mixed_score(round.stronger_score, round.weaker_score, round.share);
  return round;
}

/// Nodes and their weights at one height of the trees, (B, k * 2^h), the children of one node side by side.
struct Level {
  at::Tensor nodes, weights;
};

/// Level 0 is the outputs; each next one expands every winner into the pair it came from; the last is the source rows.
std::vector<Level> expand(const std::vector<Round>& rounds, std::int64_t batch, std::int64_t k, const at::Device& device) {
  std::vector<Level> levels;
  const auto index = at::TensorOptions().dtype(at::kLong).device(device);
  levels.push_back({at::arange(k, index).expand({batch, k}), at::ones({batch, k}, index.dtype(at::kDouble))});
  for (const auto& round : rounds | std::views::reverse) {
    const auto& [nodes, weights] = levels.back();
    const auto share = round.share.gather(1, nodes);
    const auto pair = at::stack({round.stronger.gather(1, nodes), round.weaker.gather(1, nodes)}, 2);
    const auto parts = at::stack({weights * share, weights * (1 - share)}, 2);
    levels.push_back({pair.view({batch, -1}), parts.view({batch, -1})});
  }
  return levels;
}

/// d share / d score of either side is share (1 - share) ln(B) B^score, and 0 where one side has all the weight or where
/// B^score is not finite: two such scores share evenly or not at all.
at::Tensor share_slope(const at::Tensor& share, const at::Tensor& score, double base) {
  return at::nan_to_num(share * (1 - share) * std::log(base) * at::pow(base, score), 0.0, 0.0, 0.0);
}

class TournamentFunction : public torch::autograd::Function<TournamentFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& scores, std::int64_t k,
                               const std::optional<at::Tensor>& lengths, double base, bool mirror, bool keep_order) {
    const TournamentOptions options{base, mirror, keep_order};
    const auto batch = scores.size(0);
    const auto n = scores.size(1);
    const auto count = tournament_rounds(n, k);
    const auto padded_length = k << count;
    const bool padded = lengths.has_value() || padded_length != n;

    State state;
    state.places = padded_length;
    state.scores = at::constant_pad_nd(rankable_scores(scores, lengths).to(at::kDouble), {0, padded_length - n}, lowest);
    state.leaders = at::arange(padded_length, scores.options().dtype(at::kLong)).expand({batch, padded_length});
    if (padded) state.real = lengths ? lengths->unsqueeze(1) : at::full({batch, 1}, n, state.leaders.options());

    std::vector<Round> rounds;
    for (std::int64_t i = 0; i < count; ++i) rounds.push_back(play(state, options, padded));
    const auto leaves = expand(rounds, batch, k, scores.device()).back();
    auto rows = leaves.nodes.reshape({batch, k, -1});
    auto weights = leaves.weights.reshape({batch, k, -1});
    auto positions = state.leaders.contiguous();
    auto final_scores = state.scores;
    if (padded) {
      const auto limit = (lengths ? lengths->unsqueeze(1) : at::full({batch, 1}, n, rows.options()));
      const auto absent = rows >= limit.unsqueeze(2);
      rows = rows.masked_fill(absent, -1);
      weights = weights.masked_fill(absent, 0);
      const auto empty = positions >= limit;
      positions = positions.masked_fill(empty, -1);
      final_scores = final_scores.masked_fill(empty, 0);
    }
    save(context, rounds, lengths);
    context->saved_data["base"] = base;
    context->saved_data["n"] = n;
    context->saved_data["k"] = k;
    context->saved_data["dtype"] = static_cast<std::int64_t>(scores.scalar_type());
    context->mark_non_differentiable({rows, positions});
    return {rows, weights, final_scores.clone(), positions};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto rounds = load(context);
    const double base = context->saved_data["base"].toDouble();
    const auto k = context->saved_data["k"].toInt();
    const auto n = context->saved_data["n"].toInt();
    const auto& weight_gradient = gradients[1];
    const auto batch = weight_gradient.size(0);

    // Upward: what the loss gains from a unit of weight on each node, from the source rows to the outputs.
    std::vector<at::Tensor> pair_gain(rounds.size());  // d loss / d share through the weights, per pair
    const auto levels = expand(rounds, batch, k, weight_gradient.device());
    auto gain = weight_gradient.reshape({batch, -1});
    for (std::size_t r = 0; r < rounds.size(); ++r) {
      const auto& [nodes, weights] = levels[rounds.size() - 1 - r];
      const auto pairs = gain.view({batch, -1, 2});
      const auto first = pairs.select(2, 0);
      const auto second = pairs.select(2, 1);
      const auto share = rounds[r].share.gather(1, nodes);
      pair_gain[r] = at::zeros_like(rounds[r].share).scatter_(1, nodes, weights * (first - second));
      gain = share * first + (1 - share) * second;
    }

    // Downward: from the winners' scores to the source scores.
    auto score_gradient = gradients[2];
    for (std::size_t r = rounds.size(); r-- > 0;) {
      const auto& round = rounds[r];
      const auto difference = at::nan_to_num(round.stronger_score - round.weaker_score, 0.0, 0.0, 0.0);
      const auto share_gradient = pair_gain[r] + score_gradient * difference;
      auto below = at::empty({batch, 2 * round.share.size(1)}, score_gradient.options());
      below.scatter_(1, round.stronger,
                     score_gradient * round.share + share_gradient * share_slope(round.share, round.stronger_score, base));
      below.scatter_(
          1, round.weaker,
          score_gradient * (1 - round.share) - share_gradient * share_slope(round.share, round.weaker_score, base));
      score_gradient = below;
    }
    const auto dtype = static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
    auto result = score_gradient.narrow(1, 0, n).to(dtype);
    const auto saved = context->get_saved_variables();
    if (const auto& lengths = saved.back(); lengths.defined())
      result = result.masked_fill(valid_positions(lengths, n).logical_not_(), 0);
    return {result, Variable(), Variable(), Variable(), Variable(), Variable()};
  }

 private:
  static void save(AutogradContext* context, const std::vector<Round>& rounds, const std::optional<at::Tensor>& lengths) {
    variable_list saved;
    for (const auto& round : rounds)
      for (const auto& part : {round.stronger, round.weaker, round.stronger_score, round.weaker_score, round.share})
        saved.push_back(part);
    saved.push_back(lengths.value_or(at::Tensor()));
    context->save_for_backward(saved);
  }

  static std::vector<Round> load(AutogradContext* context) {
    const auto saved = context->get_saved_variables();
    std::vector<Round> rounds;
    for (std::size_t i = 0; i + 4 < saved.size(); i += 5)
      rounds.push_back({saved[i], saved[i + 1], saved[i + 2], saved[i + 3], saved[i + 4]});
    return rounds;
  }
};

}  // namespace

std::int64_t tournament_rounds(std::int64_t n, std::int64_t k) {
  std::int64_t rounds = 0;
  while ((k << rounds) < n) ++rounds;
  return rounds;
}

Tournament run_tournament(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& lengths,
                          const TournamentOptions& options) {
  auto parts =
      TournamentFunction::apply(nan_as_lowest(scores), k, lengths, options.base, options.mirror, options.keep_order);
  return {parts[0], parts[1], parts[2], parts[3]};
}

at::Tensor worthwhile_weights(const at::Tensor& weights, double epsilon) {
  auto least = at::full({weights.size(0), weights.size(1), 1}, epsilon, weights.options());
  // Below epsilon / fan_in they sum to less than epsilon whatever they are.
  for (std::int64_t reach = 1; reach < weights.size(2); reach *= 2) {
    const auto left_out = weights.masked_fill(weights >= least, 0).sum(2, /*keepdim=*/true);
    least = at::where(left_out <= epsilon, least, least / 2);
  }
  return weights >= least;
}

std::vector<OptionSpec> tournament_option_specs() {
  return {{.name = "base",
           .type = OptionType::real,
           .fallback = 20.0,
           .meaning = "B in w = softmax(B^s_a, B^s_b): sharpness of each meeting",
           .minimum = 1.0001,
           .maximum = 1e6},
          {.name = "mirror",
           .type = OptionType::boolean,
           .fallback = true,
           .meaning = "rank i meets rank N-1-i, else rank i meets rank i + N/2"},
          {.name = "keep_order",
           .type = OptionType::boolean,
           .fallback = true,
           .meaning = "winners go back to source order after each round"}};
}

TournamentOptions tournament_options(const Options& options) {
  return {options.real("base"), options.flag("mirror"), options.flag("keep_order")};
}

}  // namespace transpool
