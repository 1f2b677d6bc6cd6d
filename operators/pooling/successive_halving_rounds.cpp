#include "operators/pooling/pooling.h"
#include "operators/pooling/selection.h"
#include "operators/pooling/tournament.h"

#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

/// Rows, scores and source positions of one batch row on their way through the rounds.
struct Field {
  at::Tensor x;          // (m, d)
  at::Tensor scores;     // (m)
  at::Tensor positions;  // (m)
};

/// The paper's form: every round mixes whole rows and hands them to the next. One batch row at a time; a round on N
/// places gives byes to the rows whose opponent's place is empty.
class SuccessiveHalvingRounds : public PoolingOperator {
 public:
  explicit SuccessiveHalvingRounds(const Options& options)
      : base_(options.real("base")), mirror_(options.flag("mirror")), keep_order_(options.flag("keep_order")) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    std::vector<at::Tensor> values, kept, positions;
    for (std::int64_t b = 0; b < x.size(0); ++b) {
      const auto valid = lengths ? (*lengths)[b].item<std::int64_t>() : x.size(1);
      Field field{x[b].narrow(0, 0, valid), nan_as_lowest(scores[b].narrow(0, 0, valid).to(at::kDouble)),
                  at::arange(valid, scores.options().dtype(at::kLong))};
      std::int64_t places = k;
      while (places < x.size(1)) places *= 2;
      for (; places > k; places /= 2) field = play_round(field, places);
      const auto missing = k - field.x.size(0);
      values.push_back(at::constant_pad_nd(field.x, {0, 0, 0, missing}));
      kept.push_back(at::constant_pad_nd(field.scores, {0, missing}).to(scores.scalar_type()));
      positions.push_back(at::constant_pad_nd(field.positions, {0, missing}, -1));
    }
    return {at::stack(values).to(x.scalar_type()), at::stack(kept), at::stack(positions)};
  }

 private:
  Field play_round(const Field& in, std::int64_t places) const {
    const auto m = in.x.size(0);
    const auto half = places / 2;
    const auto order = comparable_scores(in.scores.detach()).argsort(/*stable=*/true, 0, /*descending=*/true);
    const auto winners = std::min(m, half);
    const auto opponents = std::max<std::int64_t>(0, m - half);
    // Mirrored, the last `opponents` of the upper half meet the lower half in reverse; else the first ones meet it in order.
    const auto first = mirror_ ? half - opponents : 0;
    auto lower = order.narrow(0, half < m ? half : 0, opponents);
    if (mirror_) lower = lower.flip(0);
    const auto upper = order.narrow(0, 0, winners);
    Field out{in.x.index_select(0, upper), in.scores.index_select(0, upper), in.positions.index_select(0, upper)};
    if (opponents > 0) out = mix(out, in.x.index_select(0, lower), in.scores.index_select(0, lower), first);
    if (!keep_order_) return out;
    const auto back = std::get<1>(out.positions.sort(0));
    return {out.x.index_select(0, back), out.scores.index_select(0, back), out.positions.index_select(0, back)};
  }

  /// Meets rows [first, first + m) of `upper` with the m rows of x and scores.
  Field mix(const Field& upper, const at::Tensor& x, const at::Tensor& scores, std::int64_t first) const {
    const auto m = x.size(0);
    const auto a = upper.scores.narrow(0, first, m);
    const auto w = share(a, scores);
    const auto column = w.unsqueeze(1).to(accumulation_dtype(x.scalar_type()));
    const auto mixed = column * upper.x.narrow(0, first, m) + (1 - column) * x;
    const auto settled = w == 1;
    const auto mixed_scores = at::where(settled, a + 0 * w, w * a + (1 - w) * at::where(settled, a, scores));
    const auto rest = upper.x.size(0) - first - m;
    return {at::cat({upper.x.narrow(0, 0, first).to(mixed.scalar_type()), mixed,
                     upper.x.narrow(0, first + m, rest).to(mixed.scalar_type())}),
            at::cat({upper.scores.narrow(0, 0, first), mixed_scores, upper.scores.narrow(0, first + m, rest)}),
            upper.positions};
  }

  /// Two-way softmax of B^a and B^b by its definition; the infinite cases apart.
  at::Tensor share(const at::Tensor& a, const at::Tensor& b) const {
    const auto lowest = -std::numeric_limits<double>::infinity();
    const auto decided = (b == lowest).logical_or(at::pow(base_, a.detach()).isinf());
    const auto one = at::ones_like(a);
    const auto zero = at::zeros_like(a);
    const auto safe_a = at::where(decided, zero, a);
    const auto safe_b = at::where(decided, zero, b);
    const auto pair = at::stack({at::pow(base_, safe_a), at::pow(base_, safe_b)}).softmax(0)[0];
    return at::where(decided, at::where(a == b, 0.5 * one, one), pair);
  }

  double base_;
  bool mirror_;
  bool keep_order_;
};

/// What the rounds of one batch row keep: of each round its ranking; of the winners their rows and indices; of those who
/// lost the rows, ten numbers in float64 of the share and the mixed scores with an index or two, the shares that rows are
/// mixed by, and which meetings were decided. The rows are in x's dtype until they are first mixed.
double rounds_kept(const PoolingShape& shape, const Options& options) {
  const auto width = static_cast<double>(shape.width);
  const auto mixed = static_cast<double>(c10::elementSize(accumulation_dtype(shape.dtype)));
  auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const double per_winner = (options.flag("keep_order") ? 2 : 1) * sizeof(std::int64_t);
  const double per_loser = (options.flag("mirror") ? 10 : 9) * sizeof(double) + 2 * mixed + 2;
  std::int64_t places = shape.pooled_length;
  while (places < shape.length) places *= 2;
  double kept = 0;
  for (auto rows = shape.length; places > shape.pooled_length; places /= 2) {
    const auto winners = std::min(rows, places / 2);
    const auto losers = static_cast<double>(rows - winners);
    kept += static_cast<double>(rows) * sizeof(std::int64_t) + static_cast<double>(winners) * per_winner;
    if (losers > 0) {
      kept += (static_cast<double>(winners) + losers) * width * element + losers * per_loser;
      element = mixed;
    }
    rows = winners;
  }
  return kept;
}

Cost rounds_cost(const PoolingShape& shape, const Options& options) {
  const auto width = static_cast<double>(shape.width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto eliminated = static_cast<double>(shape.batch * (shape.length - shape.pooled_length));
  Cost cost;
  // Each elimination mixes two rows: two multiply-accumulates an element, run as elementwise calls.
  cost.flops = 4 * eliminated * width;
  cost.backward_flops = 2 * cost.flops;
  cost.forward_differences = {{"elementwise_mixing", -cost.flops}};
  cost.backward_differences = {{"elementwise_mixing", -cost.backward_flops}};
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  cost.bytes_read =
      static_cast<double>(shape.batch) *
      (2.0 * static_cast<double>(shape.length - shape.pooled_length) + static_cast<double>(shape.pooled_length)) * width *
      element;
  cost.bytes_written = (eliminated + outputs) * width * element;
  // Beside the rounds, which scores are NaN, and the outputs.
  cost.activation_bytes = static_cast<double>(shape.batch) * rounds_kept(shape, options) +
                          static_cast<double>(shape.batch * shape.length) +
                          outputs * (width * element + sizeof(float) + sizeof(std::int64_t));
  return cost;
}

std::shared_ptr<const PoolingOperator> one_pass_reference(const Options& options) {
  Json value = options.json();
  value["name"] = "successive_halving";
  const auto selection = pooling_registry().select(value);
  return selection.variant->make(selection.options);
}

const RegisterPooling registration({
    {.name = "successive_halving_rounds",
     .description = "Successive Halving as in the paper: round by round on whole rows, one batch row at a time",
     .source = "arXiv 2010.15552, Successive Halving Top-k Operator",
     .options = tournament_option_specs()},
    [](const Options& options) { return std::make_shared<SuccessiveHalvingRounds>(options); },
    one_pass_reference,
    rounds_cost,
});

}  // namespace
}  // namespace transpool
