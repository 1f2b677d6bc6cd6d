// ctest-labels: gpu;slow
#include "operators/attention/attention.h"
#include "operators/attention/flash.h"
#include "runners/measure/cuda_graph.h"
#include "runners/measure/timing.h"
#include "tests/operators/variants.h"

#include <fmt/format.h>
#include <torch/cuda.h>

namespace transpool {
namespace {

std::shared_ptr<const AttentionOperator> made(const Json& value) {
  const auto selection = attention_registry().select(value);
  return selection.variant->make(selection.options);
}

double time_of(const std::function<void()>& run) {
  try {
    return time_runs(run, [] {}, at::kCUDA, {.warmup = 3, .min_samples = 10, .max_samples = 25, .cap_seconds = 0.3}).median;
  } catch (const std::exception& error) {
    fmt::print("   ! {}\n", std::string(error.what()).substr(0, 300));
    return -1;
  }
}

void row(const std::string& name, const std::vector<at::Tensor>& in,
         const std::function<at::Tensor(const std::vector<at::Tensor>&)>& f) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : in) leaves.push_back(t.detach().requires_grad_());
  at::Tensor cotangent;
  double forward, both, graph;
  {
    at::NoGradGuard guard;
    forward = time_of([&] { f(in); });
    graph = -1;
    try {
      graph = time_of(captured([&] { f(in); }, at::kCUDA));
    } catch (const std::exception& error) {
      fmt::print("   ! {}\n", std::string(error.what()).substr(0, 300));
    }
    cotangent = at::randn_like(in[0]);
  }
  double both_graph = -1;
  const auto pass = [&] { torch::autograd::grad({f(leaves)}, leaves, {cotangent}, std::nullopt, false, true); };
  both = time_of(pass);
  try {
    both_graph = time_of(captured(pass, at::kCUDA));
  } catch (const std::exception& error) {
    fmt::print("   ! {}\n", std::string(error.what()).substr(0, 300));
  }
  fmt::print("{:58} forward {:7.3f} graph {:7.3f} both {:7.3f} graph {:7.3f}\n", name, forward, graph, both, both_graph);
  std::fflush(stdout);
}

at::Tensor draw(std::int64_t b, std::int64_t h, std::int64_t n, std::int64_t e, bool rows) {
  const auto o = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  return rows ? at::randn({b, n, h, e}, o).transpose(1, 2) : at::randn({b, h, n, e}, o);
}

TEST(Times, SlidingWindowAndLsh) {
  using Ts = std::vector<at::Tensor>;
  const std::int64_t b = 4, h = 8, e = 64;
  for (const std::int64_t n : {2048, 4096, 8192, 16384}) {
    const Ts in = {draw(b, h, n, e, true), draw(b, h, n, e, true), draw(b, h, n, e, true)};
    const auto lengths = at::tensor({n / 4, n / 2 + 7, n - 13, n}, at::kLong).to(at::kCUDA);
    for (const bool causal : {false, true}) {
      row(fmt::format("n {} sdpa causal {}", n, causal), in,
          [&](const Ts& t) { return at::scaled_dot_product_attention(t[0], t[1], t[2], {}, 0.0, causal); });
      for (const std::int64_t g : {0, 64})
        for (const bool masked : {false, true}) {
          const auto op = made({{"name", "sliding_window"}, {"window", 256}, {"global_tokens", g}});
          AttentionMask mask{masked ? std::optional(lengths) : std::nullopt, causal};
          row(fmt::format("n {} window 256 global {} causal {} lengths {}", n, g, causal, masked), in,
              [&](const Ts& t) { return op->forward(t[0], t[1], t[2], mask); });
        }
      for (const bool masked : {false, true}) {
        const auto op = made({{"name", "lsh"}, {"seed", 1}});
        AttentionMask mask{masked ? std::optional(lengths) : std::nullopt, causal};
        row(fmt::format("n {} lsh causal {} lengths {}", n, causal, masked), in,
            [&](const Ts& t) { return op->forward(t[0], t[1], t[2], mask); });
      }
    }
  }
}

TEST(Times, ZBlockwise) {
  const std::int64_t b = 4, h = 8, e = 64, c = 512;
  const auto chunks = [&](const at::Tensor& t) {
    return t.reshape({b, h, t.size(2) / c, c, e}).transpose(1, 2).reshape({-1, h, c, e});
  };
  std::vector<at::Tensor> q, ready;
  for (int i = 0; i < 3; ++i) q.push_back(draw(b, h, 8192, e, false)), ready.push_back(chunks(q.back()));
  using Ts = std::vector<at::Tensor>;
  row("peer: sdpa on ready chunks", ready, [&](const Ts& t) { return at::scaled_dot_product_attention(t[0], t[1], t[2]); });
  row("peer: chunks() and sdpa", q, [&](const Ts& t) {
    return at::scaled_dot_product_attention(chunks(t[0]), chunks(t[1]), chunks(t[2]))
        .view({b, 16, h, c, e})
        .transpose(1, 2)
        .flatten(2, 3);
  });
  const auto flash = [&](const Ts& t) {
    const auto s = [&](const at::Tensor& x) { return x.reshape({-1, c, 1, e}); };
    return std::get<0>(at::_flash_attention_forward(s(t[0]), s(t[1]), s(t[2]), {}, {}, c, c, 0.0, false, false))
        .view({b, h, -1, e});
  };
  row("flash dense on chunk views", q, flash);
  const auto sdpa = [&](const Ts& t) {
    const auto s = [&](const at::Tensor& x) { return x.reshape({-1, 1, c, e}); };
    return at::scaled_dot_product_attention(s(t[0]), s(t[1]), s(t[2])).view({b, h, -1, e});
  };
  row("sdpa on (B h n/c, 1, c, e)", q, sdpa);
  const auto padded = at::zeros({b * 16, 1, 1, c}, ready[0].options());
  padded.select(0, 5).narrow(2, 100, c - 100).fill_(-30000);
  const auto bias = padded.expand({b * 16, 1, c, c});
  row("peer: sdpa with a dense bool mask on ready chunks", ready, [&](const Ts& t) {
    return at::scaled_dot_product_attention(t[0], t[1], t[2], (bias == 0).expand({b * 16, 1, c, c}));
  });
  row("cudnn with a broadcast bias on ready chunks", ready, [&](const Ts& t) {
    return std::get<0>(at::_scaled_dot_product_cudnn_attention(t[0], t[1], t[2], bias, t[0].requires_grad()));
  });
  row("cudnn with a whole bias on ready chunks", ready, [&](const Ts& t) {
    return std::get<0>(at::_scaled_dot_product_cudnn_attention(t[0], t[1], t[2], bias.contiguous(), t[0].requires_grad()));
  });
  for (const bool rows : {true, false})
    for (const std::int64_t n : {8192, 8100})
      for (const std::string kind : {"whole", "full", "random"}) {
        const SequenceForm form{b, h, n, !rows};
        const Ts in = {draw(b, h, n, e, rows), draw(b, h, n, e, rows), draw(b, h, n, e, rows)};
        std::optional<at::Tensor> lengths;
        if (kind == "full") lengths = at::full({b}, n, at::TensorOptions(at::kCUDA).dtype(at::kLong));
        if (kind == "random") lengths = at::tensor({n / 4, n / 2 + 7, n - 13, n}, at::kLong).to(at::kCUDA);
        const auto varlen = [&](const Ts& t) {
          const auto bounds = segment_bounds(kind == "whole" ? Segments::whole : Segments::keys, form, lengths, c, 0, t[0]);
          return form.heads_of(std::get<0>(at::_cudnn_attention_forward(form.packed(t[0]), form.packed(t[1]),
                                                                        form.packed(t[2]), {}, bounds.queries, bounds.keys,
                                                                        c, c, t[0].requires_grad(), 0.0, false, false)));
        };
        const auto op = made({{"name", "blockwise"}, {"chunk", c}});
        try {
          std::vector<at::Tensor> leaves;
          for (const auto& t : in) leaves.push_back(t.detach().requires_grad_());
          const auto cotangent = at::randn_like(in[0]);
          const auto ours = op->forward(leaves[0], leaves[1], leaves[2], {lengths});
          const auto other = varlen(leaves);
          fmt::print("cudnn varlen {} n {} {}: forward differs {:.2e}", rows ? "rows" : "heads", n, kind,
                     ((ours - other).norm() / ours.norm()).item<double>());
          std::fflush(stdout);
          const auto x = torch::autograd::grad({ours}, leaves, {cotangent});
          const auto y = torch::autograd::grad({other}, leaves, {cotangent});
          for (int i = 0; i < 3; ++i) fmt::print(" {:.2e}", ((x[i] - y[i]).norm() / x[i].norm()).item<double>());
          fmt::print("\n");
        } catch (const std::exception& error) {
          fmt::print("   ! {}\n", std::string(error.what()).substr(0, 400));
        }
        row(fmt::format("cudnn varlen {} n {} {}", rows ? "rows" : "heads", n, kind), in, varlen);
      }
  const auto op = made({{"name", "blockwise"}, {"chunk", c}});
  for (const bool rows : {false, true})
    for (const std::int64_t n : {8192, 8100})
      for (const std::string kind : {"none", "random"})
        for (const bool causal : {false, true}) {
          AttentionMask mask{.key_lengths = {}, .causal = causal};
          if (kind == "full") mask.key_lengths = at::full({b}, n, at::TensorOptions(at::kCUDA).dtype(at::kLong));
          if (kind == "random") mask.key_lengths = at::tensor({n / 4, n / 2 + 7, n - 13, n}, at::kLong).to(at::kCUDA);
          row(fmt::format("blockwise {} n {} lengths {} causal {}", rows ? "rows" : "heads", n, kind, causal),
              {draw(b, h, n, e, rows), draw(b, h, n, e, rows), draw(b, h, n, e, rows)},
              [&](const Ts& t) { return op->forward(t[0], t[1], t[2], mask); });
        }
}

}  // namespace
}  // namespace transpool
