#include "models/scorers/scorer.h"

namespace transpool {
namespace {

class OracleScorer : public Scorer {
 public:
  explicit OracleScorer(const std::vector<std::int64_t>& salient) : salient_(torch::tensor(salient, torch::kLong)) {}

  torch::Tensor forward(const ScorerInput& in) override {
    if (!in.tokens)
      throw UsageError("scorer \"oracle\": the source tokens are not known; allowed: a model with an embedding");
    // No buffer: Module::to would turn the ids into floating numbers.
    if (salient_.device() != in.x.device()) salient_ = salient_.to(in.x.device());
    return torch::isin(*in.tokens, salient_).to(torch::kFloat);
  }

 private:
  torch::Tensor salient_;
};

std::shared_ptr<Scorer> make(std::int64_t, const Options& options) {
  if (!options.has("salient"))
    throw UsageError(
        "scorer \"oracle\": salient: null is not allowed here; allowed: a list of token ids, or a data set that knows them");
  std::vector<std::int64_t> salient;
  for (const auto& id : options.raw("salient")) {
    if (!id.is_number_integer())
      throw UsageError("scorer \"oracle\": salient: " + id.dump() + " is not allowed; allowed: token ids, integers");
    salient.push_back(id.get<std::int64_t>());
  }
  return std::make_shared<OracleScorer>(salient);
}

const RegisterScorer registration({
    {.name = "oracle",
     .description = "1 for rows of salient tokens, 0 for all others: the upper bound; no parameters",
     .source = "control, of no paper: upper bound on planted tasks",
     .options = {{.name = "salient",
                  .type = OptionType::list,
                  .meaning = "ids of the tokens to keep; null: those that the data set knows (planted_salience)",
                  .optional = true}}},
    make,
    [](const ScorerShape&, const Options&) { return Cost(); },
});

}  // namespace
}  // namespace transpool
