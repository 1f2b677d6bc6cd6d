#include "operators/host_kernel.h"
#include "operators/pooling/soft_topk_plan.h"

#include <ATen/Dispatch.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace transpool {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Logarithm of a share of a row that no sum in float64 shows.
constexpr double invisible = -50;

/// Column sums that differ this little from the mass, over it, show no more than their own rounding.
constexpr double rounding = 1e-12;

/// Neighbouring ranks whose shares are computed at once. They share most of what is too small to count.
constexpr std::int64_t chunk_ranks = 64;

/// Targets first .. end - 1.
struct Band {
  std::int64_t first, end;
  std::int64_t size() const { return end - first; }
};

/// The plan of one batch row: each rank spread over the targets, softmax of level * height + potential.
struct Spread {
  std::int64_t ranks, targets;
  const double *levels, *heights, *potentials;
};

/// Lanes on their own: compilers take a maximum for a reduction only where they may forget about NaN.
TRANSPOOL_INLINE double highest_logit(const Spread& s, std::int64_t rank, const Band& band) {
  constexpr std::int64_t lanes = 8;
  const double level = s.levels[rank];
  const double *const heights = s.heights + band.first, *const potentials = s.potentials + band.first;
  double most[lanes];
  std::fill(most, most + lanes, -infinity);
  std::int64_t j = 0;
  for (; j + lanes <= band.size(); j += lanes)
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      const double logit = level * heights[j + lane] + potentials[j + lane];
      most[lane] = logit > most[lane] ? logit : most[lane];
    }
  for (; j < band.size(); ++j) most[0] = std::max(most[0], level * heights[j] + potentials[j]);
  return *std::max_element(most, most + lanes);
}

/// The targets between the first and the last of which a rank has a share that is visible.
TRANSPOOL_INLINE Band visible_targets(const Spread& s, std::int64_t rank) {
  Band band{0, s.targets};
  const double level = s.levels[rank], least = highest_logit(s, rank, band) + invisible;
  while (band.size() > 1 && !(level * s.heights[band.first] + s.potentials[band.first] > least)) ++band.first;
  while (band.size() > 1 && !(level * s.heights[band.end - 1] + s.potentials[band.end - 1] > least)) --band.end;
  return band;
}

/// (ranks, band) logarithms of the shares times their sum, -inf where they are invisible. A lower rank's share of a target
/// that stands after all of its own is smaller still in the ranks above, and the other way round: the visible targets of
/// a chunk lie between the first of its first rank and the last of its last.
TRANSPOOL_INLINE Band write_logits(const Spread& s, std::int64_t first, std::int64_t ranks, double* logits) {
  const auto above = visible_targets(s, first), below = visible_targets(s, first + ranks - 1);
  const Band band{std::min(above.first, below.first), std::max(above.end, below.end)};
  for (auto rank = first; rank < first + ranks; ++rank, logits += band.size()) {
    const double level = s.levels[rank], most = highest_logit(s, rank, band);
#pragma omp simd
    for (std::int64_t j = 0; j < band.size(); ++j) {
      const double under = level * s.heights[band.first + j] + s.potentials[band.first + j] - most;
      logits[j] = under > invisible ? under : -infinity;
    }
  }
  return band;
}

TRANSPOOL_INLINE double sum_of(const double* values, std::int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) sum += values[j];
  return sum;
}

TRANSPOOL_INLINE double dot(const double* a, const double* b, std::int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

TRANSPOOL_INLINE void add_scaled(double factor, const double* from, std::int64_t count, double* to) {
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) to[j] += factor * from[j];
}

TRANSPOOL_INLINE void normalize(std::int64_t ranks, std::int64_t width, double* plan) {
  for (std::int64_t i = 0; i < ranks; ++i, plan += width) {
    const double factor = 1 / sum_of(plan, width);
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) plan[j] *= factor;
  }
}

TRANSPOOL_AVX2 Band write_logits_avx2(const Spread& s, std::int64_t first, std::int64_t ranks, double* logits) {
  return write_logits(s, first, ranks, logits);
}
TRANSPOOL_AVX2 void normalize_avx2(std::int64_t ranks, std::int64_t width, double* plan) { normalize(ranks, width, plan); }

/// The plan of neighbouring ranks, (ranks, band).
struct Chunk {
  std::int64_t first, ranks;
  Band band;
  at::Tensor plan;

  const double* row(std::int64_t i) const { return plan.const_data_ptr<double>() + i * band.size(); }
};

/// Calls use(chunk) for all the ranks of one batch row.
template <class Use>
void for_each_chunk(const Spread& s, const Use& use) {
  const auto memory = at::empty({chunk_ranks * s.targets}, at::kDouble);
  auto* const plan = memory.data_ptr<double>();
  for (std::int64_t first = 0; first < s.ranks; first += chunk_ranks) {
    const auto ranks = std::min(chunk_ranks, s.ranks - first);
    const auto band = has_avx2() ? write_logits_avx2(s, first, ranks, plan) : write_logits(s, first, ranks, plan);
    const auto own = memory.narrow(0, 0, ranks * band.size());
    own.exp_();
    has_avx2() ? normalize_avx2(ranks, band.size(), plan) : normalize(ranks, band.size(), plan);
    use(Chunk{first, ranks, band, own.view({ranks, band.size()})});
  }
}

/// The tensors of a call, all contiguous.
struct Work {
  at::Tensor levels, order, potentials, mass, lengths, heights;

  Work(const at::Tensor& given_levels, const at::Tensor& given_order, const at::Tensor& given_potentials,
       const at::Tensor& given_mass, const std::optional<at::Tensor>& given_lengths)
      : levels(given_levels.contiguous()),
        order(given_order.contiguous()),
        potentials(given_potentials.contiguous()),
        mass(given_mass.contiguous()),
        lengths(given_lengths ? given_lengths->contiguous() : at::Tensor()),
        heights(at::arange(targets() - 1, -1, -1, levels.options())) {}

  std::int64_t batch() const { return levels.size(0); }
  std::int64_t length() const { return levels.size(1); }
  std::int64_t targets() const { return mass.size(1); }
  at::Tensor active() const { return mass > 0; }

  Spread spread(std::int64_t b) const {
    const auto valid = lengths.defined() ? lengths.const_data_ptr<std::int64_t>()[b] : length();
    return {valid, targets(), levels.const_data_ptr<double>() + b * length(), heights.const_data_ptr<double>(),
            potentials.const_data_ptr<double>() + b * targets()};
  }

  /// Calls use(batch row, chunk), batch rows at once. What ATen does for a chunk is part of this call, in every thread.
  template <class Use>
  void for_each_chunk(const Use& use) const {
    // Also where there is little to do: in one thread, the library that multiplies chunks would wake others for each.
    in_threads(batch(), 1, [&](std::int64_t begin, std::int64_t end) {
      const at::DisableRecordFunctionGuard unseen;
      const at::NoGradGuard constants;
      for (auto b = begin; b < end; ++b) transpool::for_each_chunk(spread(b), [&](const Chunk& chunk) { use(b, chunk); });
    });
  }
};

/// couplings (m, m) of one batch row += plan^T plan of a chunk.
void couple(const Chunk& chunk, const at::Tensor& couplings) {
  const auto width = chunk.band.size();
  couplings.narrow(0, chunk.band.first, width).narrow(1, chunk.band.first, width).addmm_(chunk.plan.t(), chunk.plan);
}

/// (B, m) column sums of the plan and, if asked for, (B, m, m) plan^T plan.
std::tuple<at::Tensor, at::Tensor> sum_plan(const Work& work, bool with_couplings) {
  const auto sums = at::zeros_like(work.mass);
  at::Tensor couplings;
  if (with_couplings) couplings = at::zeros({work.batch(), work.targets(), work.targets()}, work.mass.options());
  work.for_each_chunk([&](std::int64_t b, const Chunk& chunk) {
    auto* const sum = sums.data_ptr<double>() + b * work.targets() + chunk.band.first;
    for (std::int64_t i = 0; i < chunk.ranks; ++i) add_scaled(1, chunk.row(i), chunk.band.size(), sum);
    if (with_couplings) couple(chunk, couplings[b]);
  });
  return {sums, couplings};
}

/// Solves H y = right, where H = -d(column sums)/d(potentials) is the Laplacian of the targets coupled by the rows they
/// share. Its diagonal is summed from the couplings, since 1 - (nearly 1) would lose them; constants, which potentials are
/// free in, and inactive targets are made regular.
at::Tensor solve_potentials(const Work& work, const at::Tensor& couplings, const at::Tensor& right, double ridge) {
  couplings.diagonal(0, 1, 2).zero_();
  const auto active = work.active().to(at::kDouble);
  const auto diagonal = couplings.sum(2) + (1 - active) + ridge;
  auto system = active.unsqueeze(2) * active.unsqueeze(1) / static_cast<double>(work.targets());
  system.sub_(couplings).diagonal(0, 1, 2).add_(diagonal);
  return std::get<0>(at::linalg_solve_ex(system, right.unsqueeze(2))).squeeze(2);
}

/// Sinkhorn's update of the targets' potentials; the rows' are eliminated by the softmax.
at::Tensor sinkhorn_step(const Work& work, const at::Tensor& sums) {
  constexpr double tiny = 1e-300;
  return work.mass.clamp_min(tiny).log() - sums.clamp_min(tiny).log();
}

/// A damped Newton step on the same concave dual. The log-sum-exp is self-concordant in the range of the step, which makes
/// log(1 + range) / range a step length that converges from anywhere (Sun and Tran-Dinh 2019, arXiv 1703.04599).
at::Tensor newton_step(const Work& work, const at::Tensor& sums, const at::Tensor& couplings, double ridge) {
  const auto step = solve_potentials(work, couplings, work.mass - sums, ridge).masked_fill_(work.active().logical_not_(), 0);
  const auto range = (step.amax(1, true) - step.amin(1, true)).clamp_min(1e-12);
  return step * (range.log1p() / range);
}

/// weights (B, k, n), source rows, each output's over their sum.
at::Tensor weights_of(const Work& work, double ridge, at::ScalarType dtype) {
  const auto k = work.targets() - 1, n = work.length();
  const auto weights = at::empty({work.batch(), k, n}, work.levels.options().dtype(dtype));
  prefer_huge_pages(weights);
  weights.zero_();
  const auto scale = std::get<0>(sum_plan(work, /*with_couplings=*/false)).clamp_min_(ridge).reciprocal_();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "soft_topk_plan", [&] {
    work.for_each_chunk([&](std::int64_t b, const Chunk& chunk) {
      const double* const factor = scale.const_data_ptr<double>() + b * work.targets() + chunk.band.first;
      const auto* const order = work.order.const_data_ptr<std::int64_t>() + b * n + chunk.first;
      auto* const out = weights.data_ptr<scalar_t>() + (b * k + chunk.band.first) * n;
      for (std::int64_t i = 0; i < chunk.ranks; ++i)
        for (std::int64_t j = 0; j < std::min(chunk.band.end, k) - chunk.band.first; ++j)
          out[j * n + order[i]] = static_cast<scalar_t>(chunk.row(i)[j] * factor[j]);
    });
  });
  return weights;
}

std::tuple<at::Tensor, at::Tensor> plan_cpu(const at::Tensor& levels, const at::Tensor& order, const at::Tensor& potentials,
                                            const at::Tensor& mass, const std::optional<at::Tensor>& lengths,
                                            std::int64_t iterations, std::int64_t newton_steps, double ridge,
                                            at::ScalarType dtype) {
  const Work work(levels, order, potentials.clone(at::MemoryFormat::Contiguous), mass, lengths);
  const auto enough = work.mass.clamp_min(1) * rounding;
  for (std::int64_t i = 0; i < iterations + newton_steps; ++i) {
    const auto [sums, couplings] = sum_plan(work, /*with_couplings=*/i >= iterations);
    if (((sums - work.mass).abs() <= enough).all().item<bool>()) break;
    const auto step = i < iterations ? sinkhorn_step(work, sums) : newton_step(work, sums, couplings, ridge);
    work.potentials.add_(step.masked_fill(work.active().logical_not_(), 0));
  }
  return {weights_of(work, ridge, dtype), work.potentials};
}

/// Of a chunk, shares times what they gain, less each row's mean. Gains count from that of each row's likeliest target: a
/// row that is all but settled then loses no digits to the constant that its gains share.
template <class T>
void write_flow(const Work& work, std::int64_t b, const Chunk& chunk, const T* weight_gradient, std::vector<double>& flow) {
  const auto k = work.targets() - 1, n = work.length(), width = chunk.band.size();
  flow.resize(static_cast<std::size_t>(chunk.ranks * width));
  const auto* const order = work.order.const_data_ptr<std::int64_t>() + b * n + chunk.first;
  const auto* const gains = weight_gradient + (b * k + chunk.band.first) * n;
  const auto inside = std::min(chunk.band.end, k) - chunk.band.first;
  for (std::int64_t i = 0; i < chunk.ranks; ++i) {
    const double* const plan = chunk.row(i);
    double* const own = flow.data() + i * width;
    const auto likeliest = std::max_element(plan, plan + width) - plan;
    const double base = likeliest < inside ? static_cast<double>(gains[likeliest * n + order[i]]) : 0;
    for (std::int64_t j = 0; j < width; ++j)
      own[j] = plan[j] == 0 ? 0 : plan[j] * ((j < inside ? static_cast<double>(gains[j * n + order[i]]) : 0) - base);
    add_scaled(-sum_of(own, width), plan, width, own);
  }
}

at::Tensor plan_backward_cpu(const at::Tensor& given, const at::Tensor& levels, const at::Tensor& order,
                             const at::Tensor& potentials, const at::Tensor& mass, const std::optional<at::Tensor>& lengths,
                             double ridge) {
  const auto weight_gradient = given.contiguous();
  const Work work(levels, order, potentials, mass, lengths);
  const auto m = work.targets();
  const auto sums = at::zeros_like(work.mass);
  const auto couplings = at::zeros({work.batch(), m, m}, work.mass.options());
  const auto gradient = at::zeros_like(work.levels);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, weight_gradient.scalar_type(), "soft_topk_plan_backward", [&] {
    const auto* const gains = weight_gradient.const_data_ptr<scalar_t>();
    work.for_each_chunk([&](std::int64_t b, const Chunk& chunk) {
      std::vector<double> flow;
      write_flow(work, b, chunk, gains, flow);
      const auto width = chunk.band.size();
      auto* const sum = sums.data_ptr<double>() + b * m + chunk.band.first;
      for (std::int64_t i = 0; i < chunk.ranks; ++i) add_scaled(1, flow.data() + i * width, width, sum);
      couple(chunk, couplings[b]);
    });
    const auto answer = solve_potentials(work, couplings, sums, ridge).contiguous();
    work.for_each_chunk([&](std::int64_t b, const Chunk& chunk) {
      std::vector<double> flow;
      write_flow(work, b, chunk, gains, flow);
      const auto width = chunk.band.size();
      const double* const own_answer = answer.const_data_ptr<double>() + b * m + chunk.band.first;
      const double* const heights = work.heights.const_data_ptr<double>() + chunk.band.first;
      const auto* const source = work.order.const_data_ptr<std::int64_t>() + b * work.length() + chunk.first;
      for (std::int64_t i = 0; i < chunk.ranks; ++i) {
        const double* const plan = chunk.row(i);
        const double mean_height = dot(plan, heights, width);
        double total = 0;
        for (std::int64_t j = 0; j < width; ++j)
          total += (flow[static_cast<std::size_t>(i * width + j)] - plan[j] * own_answer[j]) * (heights[j] - mean_height);
        gradient.data_ptr<double>()[b * work.length() + source[i]] = total;
      }
    });
  });
  return gradient;
}

TORCH_LIBRARY_IMPL(transpool, CPU, library) {
  library.impl("soft_topk_plan", plan_cpu);
  library.impl("soft_topk_plan_backward", plan_backward_cpu);
}

}  // namespace
}  // namespace transpool
