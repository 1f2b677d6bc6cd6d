#include "operators/pooling/pooling.h"
#include "operators/pooling/successive_halving_kernel.h"
#include "operators/pooling/tournament.h"
#include "operators/pooling/weighted_gather.h"

#include <numeric>

namespace transpool {

double skipped_weight(const Options& options, at::ScalarType dtype) {
  const auto skip = options.text("skip");
  if (skip == "off") return 0;
  if (skip == "epsilon") return options.real("epsilon");
  switch (dtype) {
    case at::kDouble: return 0x1p-54;
    case at::kFloat: return 0x1p-25;
    case at::kHalf: return 0x1p-12;
    default: return 0x1p-9;
  }
}

namespace {

/// One pass over x: the tournament runs on the scores alone and says which k-th of the rows each output mixes, and by
/// how much; one segmented gather does the mixing, and need not read rows of negligible weight. Rows that are left out
/// pass no gradient.
class SuccessiveHalving : public PoolingOperator {
 public:
  explicit SuccessiveHalving(const Options& options) : options_(options), tournament_(tournament_options(options)) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const double epsilon = skipped_weight(options_, x.scalar_type());
    if (has_successive_halving_kernel(x.device(), x.size(1), k))
      return successive_halving_kernel(x, scores, k, lengths, tournament_, epsilon);
    const auto tournament = run_tournament(scores, k, lengths, tournament_);
    auto weights = tournament.weights.to(accumulation_dtype(x.scalar_type()));
    if (epsilon > 0) weights = weights * worthwhile_weights(weights.detach(), epsilon);
    const bool every_row_named = !lengths && tournament.rows.size(1) * tournament.rows.size(2) == x.size(1);
    return {weighted_gather(x, tournament.rows, weights, every_row_named), tournament.scores.to(scores.scalar_type()),
            tournament.positions};
  }

  std::optional<double> rows_read(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                                  const std::optional<at::Tensor>& lengths) const override {
    const auto tournament = run_tournament(scores.detach(), k, lengths, tournament_);
    const auto weights = tournament.weights.to(accumulation_dtype(x.scalar_type()));
    const auto read = (weights != 0).logical_and(worthwhile_weights(weights, skipped_weight(options_, x.scalar_type())));
    const auto valid = (tournament.rows >= 0).sum().item<double>();
    return valid == 0 ? 1 : read.sum().item<double>() / valid;
  }

  std::string backend(const at::Device& device) const override { return weighted_gather_backend(device); }

 private:
  Options options_;
  TournamentOptions tournament_;
};

/// Where weights are left out: the tournament's rows gathered whole, and the weights judged one output at a time.
class SkippingReference : public PoolingOperator {
 public:
  explicit SkippingReference(const Options& options) : options_(options), tournament_(tournament_options(options)) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    const auto t = run_tournament(scores, k, lengths, tournament_);
    const auto kept = worthwhile(t.weights.detach().cpu().contiguous(), skipped_weight(options_, x.scalar_type()));
    const auto weights = t.weights * kept.to(t.weights.device());
    const auto index = t.rows.clamp_min(0).flatten(1).unsqueeze(2).expand({-1, -1, x.size(2)});
    const auto rows = x.gather(1, index).unflatten(1, {k, t.rows.size(2)});
    const auto mixed =
        (rows.to(accumulation_dtype(x.scalar_type())) * weights.to(accumulation_dtype(x.scalar_type())).unsqueeze(3))
            .masked_fill(weights.unsqueeze(3) == 0, 0);
    return {mixed.sum(2).to(x.scalar_type()), t.scores.to(scores.scalar_type()), t.positions};
  }

 private:
  static at::Tensor worthwhile(const at::Tensor& weights, double epsilon) {
    auto kept = at::zeros_like(weights);
    const auto fan_in = weights.size(2);
    for (std::int64_t slot = 0; slot < weights.size(0) * weights.size(1); ++slot) {
      const double* w = weights.data_ptr<double>() + slot * fan_in;
      const auto sum_below = [&](double limit) {
        return std::accumulate(w, w + fan_in, 0.0,
                               [=](double sum, double value) { return value < limit ? sum + value : sum; });
      };
      double least = epsilon;
      while (sum_below(least) > epsilon) least /= 2;
      for (std::int64_t c = 0; c < fan_in; ++c) kept.data_ptr<double>()[slot * fan_in + c] = w[c] >= least ? 1 : 0;
    }
    return kept;
  }

  Options options_;
  TournamentOptions tournament_;
};

Cost successive_halving_cost(const PoolingShape& shape, const Options& options) {
  const auto rounds = tournament_rounds(shape.length, shape.pooled_length);
  const auto padded = static_cast<double>(shape.batch * (shape.pooled_length << rounds));
  const auto width = static_cast<double>(shape.width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto accumulator = static_cast<double>(c10::elementSize(accumulation_dtype(shape.dtype)));
  const auto scores = static_cast<double>(shape.batch * shape.length) * sizeof(float);
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  Cost cost;
  cost.flops = 2 * padded * width;
  cost.backward_flops = 2 * cost.flops;
  cost.bytes_read = static_cast<double>(shape.batch * shape.length) * width * element + scores;
  cost.bytes_written = outputs * (width * element + sizeof(float) + sizeof(std::int64_t));
  const double pairs = padded - outputs;  // over all rounds
  // Of each pair its rows, their scores and the share. Mirrored and in falling order the stronger row stands in the whole
  // ranking, the weaker one in a copy.
  const double indices = options.flag("mirror") && !options.flag("keep_order") ? 3 : 2;
  // Of each row of x where it goes and its weight, and whether its score is NaN; the outputs.
  cost.activation_bytes = pairs * (indices * sizeof(std::int64_t) + 3 * sizeof(double)) +
                          padded * (sizeof(std::int64_t) + accumulator) + static_cast<double>(shape.batch * shape.length) +
                          cost.bytes_written;
  return cost;
}

std::shared_ptr<const PoolingOperator> make_reference(const Options& options) {
  if (options.text("skip") != "off") return std::make_shared<SkippingReference>(options);
  return pooling_registry().find("successive_halving_rounds").make(options);
}

std::vector<OptionSpec> option_specs() {
  auto specs = tournament_option_specs();
  specs.push_back(
      {.name = "skip",
       .type = OptionType::choice,
       .fallback = "off",
       .meaning = "leave out, and do not read, rows of an output whose weights sum to no more than nothing, half a unit "
                  "in the last place of the dtype, or epsilon",
       .choices = {"off", "auto", "epsilon"}});
  specs.push_back({.name = "epsilon",
                   .type = OptionType::real,
                   .fallback = 1e-3,
                   .meaning = "with skip = epsilon: an output is off by no more than this times the largest element of x",
                   .minimum = 0,
                   .maximum = 1});
  return specs;
}

const RegisterPooling registration({
    {.name = "successive_halving",
     .description = "Successive Halving top-k in one pass: tournament on the scores, one weighted gather",
     .source = "arXiv 2010.15552, Successive Halving Top-k Operator",
     .options = option_specs()},
    [](const Options& options) { return std::make_shared<SuccessiveHalving>(options); },
    make_reference,
    successive_halving_cost,
});

}  // namespace
}  // namespace transpool
