#include "operators/pooling/pooling.h"
#include "operators/pooling/tournament.h"
#include "operators/pooling/weighted_gather.h"

namespace transpool {
namespace {

/// One pass over x: the tournament runs on the scores alone and says which k-th of the rows each output mixes, and by
/// how much; one segmented gather does the mixing.
class SuccessiveHalving : public PoolingOperator {
 public:
  explicit SuccessiveHalving(const Options& options) : options_(tournament_options(options)) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto tournament = run_tournament(scores, k, lengths, options_);
    const auto weights = tournament.weights.to(accumulation_dtype(x.scalar_type()));
    const bool every_row_named = !lengths && tournament.rows.size(1) * tournament.rows.size(2) == x.size(1);
    return {weighted_gather(x, tournament.rows, weights, every_row_named), tournament.scores.to(scores.scalar_type()),
            tournament.positions};
  }

  std::string backend(const at::Device& device) const override { return weighted_gather_backend(device); }

 private:
  TournamentOptions options_;
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

PoolingFactory rounds_reference() {
  return [](const Options& options) { return pooling_registry().find("successive_halving_rounds").make(options); };
}

const RegisterPooling registration({
    {.name = "successive_halving",
     .description = "Successive Halving top-k in one pass: tournament on the scores, one weighted gather",
     .source = "arXiv 2010.15552, algorithm 1; arXiv 2009.05169, section 3",
     .options = tournament_option_specs()},
    [](const Options& options) { return std::make_shared<SuccessiveHalving>(options); },
    rounds_reference(),
    successive_halving_cost,
});

}  // namespace
}  // namespace transpool
