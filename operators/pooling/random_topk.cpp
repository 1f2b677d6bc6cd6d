#include "operators/noise.h"
#include "operators/pooling/pool_by_rows.h"
#include "operators/pooling/selection.h"

#include <algorithm>

namespace transpool {
namespace {

/// A random number (B, n) for each row, uniform in [0, 1), float64.
at::Tensor row_keys(const at::Tensor& scores, const Options& options) {
  return at::rand(scores.sizes(), noise_generator(options, scores.device()), scores.options().dtype(at::kDouble));
}

/// Keeps the rows of the k highest random numbers: every set of k valid rows is equally likely.
class RandomTopk : public PoolingOperator {
 public:
  explicit RandomTopk(const Options& options) : options_(options) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto positions = select_top_rows(row_keys(scores, options_), k, lengths, /*keep_order=*/true);
    return {gather_rows(x, positions), gather_rows(nan_as_lowest(scores), positions).detach(), positions};
  }

  bool passes_score_gradient() const override { return false; }

 private:
  Options options_;
};

/// The same numbers, of which the valid ones are crossed out one by one from the highest down.
class RandomTopkReference : public PoolingOperator {
 public:
  explicit RandomTopkReference(const Options& options) : options_(options) {}

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    const auto keys = row_keys(scores, options_).cpu();
    const auto pool_row = [&keys](const at::Tensor& rows, const at::Tensor& scored, std::int64_t outputs,
                                  std::int64_t batch_row) -> Pooled {
      const auto chosen =
          at::tensor(highest(keys[batch_row].narrow(0, 0, rows.size(0)), outputs), scored.options().dtype(at::kLong));
      return {rows.index_select(0, chosen), nan_as_lowest(scored.detach()).index_select(0, chosen), chosen};
    };
    return pool_by_rows(x, scores, k, lengths, pool_row);
  }

  bool passes_score_gradient() const override { return false; }

 private:
  /// Positions of the `count` highest keys (L,) in rising order.
  static std::vector<std::int64_t> highest(const at::Tensor& keys, std::int64_t count) {
    std::vector<double> left(keys.data_ptr<double>(), keys.data_ptr<double>() + keys.size(0));
    std::vector<bool> drawn(left.size(), false);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto next = std::max_element(left.begin(), left.end());
      drawn[static_cast<std::size_t>(next - left.begin())] = true;
      *next = -1;
    }
    std::vector<std::int64_t> rows;
    for (std::size_t i = 0; i < drawn.size(); ++i)
      if (drawn[i]) rows.push_back(static_cast<std::int64_t>(i));
    return rows;
  }

  Options options_;
};

Cost random_topk_cost(const PoolingShape& shape, const Options&) {
  const auto rows = static_cast<double>(shape.batch * shape.pooled_length);
  const double kept = rows * static_cast<double>(shape.width) * static_cast<double>(c10::elementSize(shape.dtype));
  Cost cost;
  // The random numbers are written and read back.
  const double keys = static_cast<double>(shape.batch * shape.length) * sizeof(double);
  cost.bytes_read = kept + keys + rows * sizeof(float);
  cost.bytes_written = kept + keys + rows * (sizeof(float) + sizeof(std::int64_t));
  cost.activation_bytes = kept + rows * (2 * sizeof(std::int64_t) + 1 + sizeof(float));
  return cost;
}

const RegisterPooling registration({
    {.name = "random_topk",
     .description = "k random rows, whatever their scores, in source order",
     .source = "control, of no paper: lower bound of any selection",
     .options = {seed_option()},
     .capabilities = {.stochastic = true}},
    [](const Options& options) { return std::make_shared<RandomTopk>(options); },
    [](const Options& options) { return std::make_shared<RandomTopkReference>(options); },
    random_topk_cost,
});

}  // namespace
}  // namespace transpool
