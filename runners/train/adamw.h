#pragma once

#include <torch/optim/adamw.h>

namespace transpool {

/// torch::optim::AdamW whose step is one fused call over all parameters, as PyTorch's `fused=True`, not a dozen small calls
/// a parameter. Saved and loaded as its base. No amsgrad.
class AdamW : public torch::optim::AdamW {
 public:
  using torch::optim::AdamW::AdamW;
  torch::Tensor step(LossClosure closure = nullptr) override;
};

}  // namespace transpool
