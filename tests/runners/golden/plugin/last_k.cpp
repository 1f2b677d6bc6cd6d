#include "operators/pooling/pooling.h"
#include "operators/pooling/selection.h"

namespace {

using namespace transpool;

/// Keeps the last k valid rows.
class LastK : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto place = at::arange(x.size(1), scores.options()).expand_as(scores);
    const auto positions = select_top_rows(place, k, lengths, true);
    return {gather_rows(x, positions), gather_rows(scores, positions), positions};
  }
};

const auto make = [](const Options&) { return std::make_shared<LastK>(); };

const RegisterPooling registration({{.name = "last_k", .description = "the last k rows", .source = "a test"},
                                    make,
                                    make,
                                    [](const PoolingShape&, const Options&) { return Cost{}; }});

}  // namespace
