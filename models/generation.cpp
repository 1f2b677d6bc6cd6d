#include "models/generation.h"

#include <limits>

namespace transpool {

torch::Tensor generate_greedy(Seq2Seq& model, const torch::Tensor& source, const std::optional<torch::Tensor>& lengths,
                              const GenerationConfig& config) {
  const torch::NoGradGuard no_gradient;
  auto state = model->start(model->encode(source, lengths), config.max_length);
  auto tokens = torch::full({source.size(0)}, config.bos, source.options());
  auto finished = torch::zeros({source.size(0)}, source.options().dtype(torch::kBool));
  std::vector<torch::Tensor> said;
  for (std::int64_t step = 0; step < config.max_length; ++step) {
    auto logits = model->forward_step(tokens, state);
    if (step < config.min_length) logits.select(1, config.eos).fill_(-std::numeric_limits<float>::infinity());
    tokens = logits.argmax(1).masked_fill(finished, config.eos);
    finished = finished.logical_or(tokens == config.eos);
    said.push_back(tokens);
    // Reading `finished` waits for the device, so it is done only every few steps.
    if (config.stop_early && step % 8 == 7 && finished.all().item<bool>()) break;
  }
  return torch::stack(said, 1);
}

}  // namespace transpool
