#include "runners/train/adamw.h"

#include <gtest/gtest.h>
#include <torch/serialize.h>

#include <sstream>

namespace transpool {
namespace {

std::vector<at::Tensor> make_parameters() {
  return {at::tensor({1.0, -2.0, 3.0}).set_requires_grad(true), at::tensor({0.5}).set_requires_grad(true),
          at::tensor({7.0}).set_requires_grad(true)};
}

/// The last parameter never gets a gradient.
void one_step(torch::optim::Optimizer& optimizer, const std::vector<at::Tensor>& parameters) {
  optimizer.zero_grad();
  (parameters[0].square().sum() * parameters[1].sum()).backward();
  optimizer.step();
}

TEST(AdamW, StepsLikeTheUnfusedOptimiser) {
  const auto ours = make_parameters(), theirs = make_parameters();
  const auto options = torch::optim::AdamWOptions(0.1).weight_decay(0.05);
  AdamW fused(ours, options);
  torch::optim::AdamW plain(theirs, options);
  for (int i = 0; i < 20; ++i) {
    one_step(fused, ours);
    one_step(plain, theirs);
    for (std::size_t p = 0; p < ours.size(); ++p) EXPECT_TRUE(at::allclose(ours[p], theirs[p], 1e-5, 1e-6)) << i;
  }
  EXPECT_EQ(ours[2].item<float>(), 7);
}

TEST(AdamW, GoesOnFromWhatItSaved) {
  const auto whole = make_parameters();
  AdamW straight(whole, torch::optim::AdamWOptions(0.1));
  for (int i = 0; i < 6; ++i) one_step(straight, whole);

  const auto parts = make_parameters();
  std::stringstream saved;
  {
    AdamW first(parts, torch::optim::AdamWOptions(0.1));
    for (int i = 0; i < 3; ++i) one_step(first, parts);
    torch::save(first, saved);
  }
  AdamW second(parts, torch::optim::AdamWOptions(0.1));
  torch::load(second, saved);
  for (int i = 0; i < 3; ++i) one_step(second, parts);
  for (std::size_t p = 0; p < whole.size(); ++p) EXPECT_TRUE(at::equal(whole[p], parts[p]));
}

}  // namespace
}  // namespace transpool
