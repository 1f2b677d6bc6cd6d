#include "operators/pooling/semiseparable_mixture_cpu.h"

#include "operators/host_kernel.h"
#include "operators/pooling/mixture.h"
#include "operators/pooling/ranking.h"
#include "operators/pooling/selection.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <algorithm>
#include <vector>

namespace transpool {
namespace {

using enum SemiseparableState::Scalar;

/// Columns that one task sums, whatever the number of threads, on which no sum may depend.
constexpr std::int64_t slab = 128;

/// How the scores order the rows of a call, as tensors. Rows past the top weigh `rest` (B, n) in an output of the lowest
/// score of the top, and 0 stands for every other row; `level` (B, n) bool, if two-sided: those of exactly that score.
struct Order {
  at::Tensor counts, top, rank, decay, rest, level;
};

at::Tensor counts_of(std::int64_t batch, std::int64_t k, const std::optional<at::Tensor>& lengths) {
  return lengths ? lengths->clamp_max(k).contiguous() : at::full({batch}, k, at::TensorOptions().dtype(at::kLong));
}

Order order_of(const at::Tensor& clean, const at::Tensor& top, const at::Tensor& rank, const at::Tensor& decay,
               const std::optional<at::Tensor>& lengths, double sharpness, bool two_sided) {
  const auto counts = counts_of(top.size(0), top.size(1), lengths);
  const auto last = top.gather(1, (counts - 1).clamp_min_(0).unsqueeze(1)).to(at::kLong);
  const auto under = clean - clean.gather(1, last);
  const auto past = rank == -1;
  auto rest = (under * sharpness).exp_().masked_fill_(past.logical_not(), 0);
  return {counts, top, rank, decay.contiguous(), rest, two_sided ? past & (under == 0) : at::Tensor()};
}

/// The order of one batch row, as pointers.
template <class C>
struct Ranks {
  std::int64_t length, count;
  const std::int32_t *top, *rank;
  const C *decay, *rest;
  const bool* level;  ///< null if one-sided

  Ranks(const Order& order, std::int64_t b)
      : length(order.rank.size(1)),
        count(order.counts.const_data_ptr<std::int64_t>()[b]),
        top(order.top.const_data_ptr<std::int32_t>() + b * order.top.size(1)),
        rank(order.rank.const_data_ptr<std::int32_t>() + b * length),
        decay(order.decay.const_data_ptr<C>() + b * order.top.size(1)),
        rest(order.rest.const_data_ptr<C>() + b * length),
        level(order.level.defined() ? order.level.const_data_ptr<bool>() + b * length : nullptr) {}

  bool stands_level(std::int64_t j) const { return level != nullptr && level[j]; }
};

/// The columns of one task in one batch row.
struct Columns {
  std::int64_t stride, first, count;
  std::int64_t row(std::int64_t j) const { return j * stride + first; }
};

template <class T, class C>
TRANSPOOL_INLINE void add_row(C weight, const T* row, std::int64_t columns, C* sum) {
#pragma omp simd
  for (std::int64_t i = 0; i < columns; ++i) sum[i] += weight * static_cast<C>(row[i]);
}

template <class T, class C>
TRANSPOOL_INLINE C dot(const T* row, const C* other, std::int64_t columns) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < columns; ++i) sum += static_cast<C>(row[i]) * other[i];
  return sum;
}

/// <row - mean, other>: where a row is all but its output, its digits cancel before they are multiplied.
template <class T, class C>
TRANSPOOL_INLINE C dot_from(const C* mean, const T* row, const C* other, std::int64_t columns) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < columns; ++i) sum += (static_cast<C>(row[i]) - mean[i]) * other[i];
  return sum;
}

/// A sum over rows of one score after the other, each row weighing exp(-sharpness distance) at the score that has been
/// reached: rows of scores that lie behind, and apart from them those of exactly that score.
template <class C>
struct Scan {
  std::vector<C> passed, level;

  explicit Scan(std::int64_t columns)
      : passed(static_cast<std::size_t>(columns)), level(static_cast<std::size_t>(columns)) {}

  TRANSPOOL_INLINE void clear() {
    std::fill(passed.begin(), passed.end(), C(0));
    std::fill(level.begin(), level.end(), C(0));
  }
  /// To the next row's score; under 0 it is the same one.
  TRANSPOOL_INLINE void step(C decay) {
    if (decay < 0) return;
    C *const behind = passed.data(), *const here = level.data();
    const auto columns = static_cast<std::int64_t>(passed.size());
#pragma omp simd
    for (std::int64_t i = 0; i < columns; ++i) {
      behind[i] = decay * (behind[i] + here[i]);
      here[i] = 0;
    }
  }
  template <class T>
  TRANSPOOL_INLINE void add(const T* row) {
    add_row(C(1), row, static_cast<std::int64_t>(level.size()), level.data());
  }
  /// out = base + all that was summed.
  template <class T>
  TRANSPOOL_INLINE void store(const C* base, T* out) const {
    const C *const behind = passed.data(), *const here = level.data();
    const auto columns = static_cast<std::int64_t>(passed.size());
#pragma omp simd
    for (std::int64_t i = 0; i < columns; ++i)
      out[i] = static_cast<T>((base != nullptr ? base[i] : C(0)) + (behind[i] + here[i]));
  }
};

/// sums (count, columns): for each output its rows by their weights; difference, unless null: the rows of lower scores less
/// those of higher ones.
template <class T, class C>
TRANSPOOL_INLINE void sum_columns(const Ranks<C>& ranks, const Columns& columns, const T* x, C* sums, C* difference) {
  Scan<C> scan(columns.count);
  for (std::int64_t j = 0; j < ranks.length; ++j)
    if (ranks.rest[j] != 0)
      add_row(ranks.rest[j], x + columns.row(j), columns.count, (ranks.stands_level(j) ? scan.level : scan.passed).data());
  for (auto t = ranks.count; t-- > 0;) {
    scan.step(ranks.decay[t]);
    scan.add(x + columns.row(ranks.top[t]));
    scan.store(static_cast<const C*>(nullptr), sums + columns.row(t));
    if (difference != nullptr) std::copy(scan.passed.begin(), scan.passed.end(), difference + columns.row(t));
  }
  if (ranks.level == nullptr) return;
  scan.clear();
  for (std::int64_t t = 0; t < ranks.count; ++t) {
    if (t > 0) scan.step(ranks.decay[t - 1]);
    scan.store(sums + columns.row(t), sums + columns.row(t));
    if (difference != nullptr) add_row(C(-1), scan.passed.data(), columns.count, difference + columns.row(t));
    scan.add(x + columns.row(ranks.top[t]));
  }
}

/// The transpose: x_gradient (n, columns) of a loss whose gradient in the unscaled sums is flow (count, columns), and the
/// derivative of <sums, flow> in sharpness times the rows' scores, as rows that are weighed in other outputs than their own.
/// mean (count, columns), unless null: what each row has in its own over that, as a gain.
template <class T, class C>
TRANSPOOL_INLINE void spread_columns(const Ranks<C>& ranks, const Columns& columns, const T* x, const C* flow, const C* mean,
                                     T* x_gradient, C* gains) {
  const bool two_sided = ranks.level != nullptr;
  Scan<C> scan(columns.count);
  std::vector<C> above(static_cast<std::size_t>(two_sided ? ranks.count * columns.count : 0));
  std::vector<C> all(static_cast<std::size_t>(columns.count));
  for (std::int64_t t = 0; t < ranks.count; ++t) {
    const auto row = columns.row(ranks.top[t]);
    if (t > 0) scan.step(ranks.decay[t - 1]);
    scan.add(flow + columns.row(t));
    scan.store(static_cast<const C*>(nullptr), all.data());
    C gain = dot(x + row, scan.passed.data(), columns.count);
    if (mean != nullptr) gain += dot_from(mean + columns.row(t), x + row, flow + columns.row(t), columns.count);
    gains[ranks.top[t]] = gain;
    if (two_sided) std::copy(all.begin(), all.end(), above.begin() + t * columns.count);
    else scan.store(static_cast<const C*>(nullptr), x_gradient + row);
  }
  for (std::int64_t j = 0; j < ranks.length; ++j) {
    if (ranks.rank[j] >= 0) continue;
    const C weight = ranks.rest[j];
    T* const out = x_gradient + columns.row(j);
    gains[j] = 0;
    std::fill(out, out + columns.count, T(0));
    if (weight == 0) continue;
    gains[j] = weight * dot(x + columns.row(j), (ranks.stands_level(j) ? scan.passed : all).data(), columns.count);
#pragma omp simd
    for (std::int64_t i = 0; i < columns.count; ++i) out[i] = static_cast<T>(weight * all[static_cast<std::size_t>(i)]);
  }
  if (!two_sided) return;
  scan.clear();
  for (auto t = ranks.count; t-- > 0;) {
    const auto row = columns.row(ranks.top[t]);
    scan.step(ranks.decay[t]);
    scan.store(above.data() + t * columns.count, x_gradient + row);
    gains[ranks.top[t]] -= dot(x + row, scan.passed.data(), columns.count);
    scan.add(flow + columns.row(t));
  }
}

template <class T, class C>
TRANSPOOL_AVX2 void sum_columns_avx2(const Ranks<C>& ranks, const Columns& columns, const T* x, C* sums, C* difference) {
  sum_columns(ranks, columns, x, sums, difference);
}

template <class T, class C>
TRANSPOOL_AVX2 void spread_columns_avx2(const Ranks<C>& ranks, const Columns& columns, const T* x, const C* flow,
                                        const C* mean, T* x_gradient, C* gains) {
  spread_columns(ranks, columns, x, flow, mean, x_gradient, gains);
}

std::int64_t slabs_of(std::int64_t width) { return (width + slab - 1) / slab; }

/// Calls task(batch row, index of the slab, columns) for every slab of every batch row of so many rows.
template <class Task>
void for_each_slab(std::int64_t batch, std::int64_t rows, std::int64_t width, const Task& task) {
  const auto slabs = slabs_of(width);
  in_threads(batch * slabs, tasks_a_thread(rows * std::min(slab, width)), [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) {
      const auto first = i % slabs * slab;
      task(i / slabs, i % slabs, Columns{width, first, std::min(slab, width - first)});
    }
  });
}

/// Unscaled sums (B, k, d) in the accumulation dtype of x (B, n, d), and with `differ` their difference; else an empty one.
std::tuple<at::Tensor, at::Tensor> sum_rows(const Order& order, const at::Tensor& x, bool differ) {
  const auto n = x.size(1), k = order.top.size(1), width = x.size(2);
  const auto options = x.options().dtype(accumulation_dtype(x.scalar_type()));
  const auto sums = at::zeros({x.size(0), k, width}, options);
  const auto difference = differ ? at::zeros_like(sums) : at::empty({0}, options);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "semiseparable_mixture", [&] {
    using C = at::opmath_type<scalar_t>;
    for_each_slab(x.size(0), n, width, [&](std::int64_t b, std::int64_t, const Columns& columns) {
      const Ranks<C> ranks(order, b);
      const auto* from = x.const_data_ptr<scalar_t>() + b * n * width;
      auto* to = sums.data_ptr<C>() + b * k * width;
      auto* apart = differ ? difference.data_ptr<C>() + b * k * width : nullptr;
      if (has_avx2()) sum_columns_avx2(ranks, columns, from, to, apart);
      else sum_columns(ranks, columns, from, to, apart);
    });
  });
  return {sums, difference};
}

/// The gradient of x (B, n, d), and the gains (B, n), from flow (B, k, d) and, unless undefined, mean (B, k, d).
std::tuple<at::Tensor, at::Tensor> spread_rows(const Order& order, const at::Tensor& x, const at::Tensor& flow,
                                               const at::Tensor& mean) {
  const auto n = x.size(1), k = order.top.size(1), width = x.size(2);
  const auto x_gradient = at::empty_like(x);
  prefer_huge_pages(x_gradient);
  const auto gains = at::empty({x.size(0), slabs_of(width), n}, flow.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "semiseparable_mixture_backward", [&] {
    using C = at::opmath_type<scalar_t>;
    for_each_slab(x.size(0), n, width, [&](std::int64_t b, std::int64_t index, const Columns& columns) {
      const Ranks<C> ranks(order, b);
      const auto* rows = x.const_data_ptr<scalar_t>() + b * n * width;
      const auto* given = flow.const_data_ptr<C>() + b * k * width;
      const auto* from = mean.defined() ? mean.const_data_ptr<C>() + b * k * width : nullptr;
      auto* out = x_gradient.data_ptr<scalar_t>() + b * n * width;
      auto* gain = gains.data_ptr<C>() + (b * slabs_of(width) + index) * n;
      if (has_avx2()) spread_columns_avx2(ranks, columns, rows, given, from, out, gain);
      else spread_columns(ranks, columns, rows, given, from, out, gain);
    });
  });
  return {x_gradient, gains.sum(1)};
}

/// Weight of rank t + 1 in output t; -1 for the last rank and, two-sided, for equal scores.
at::Tensor decays_of(const at::Tensor& falling, const at::Tensor& counts, double sharpness, bool two_sided) {
  const auto k = falling.size(1);
  const auto drop = falling.narrow(1, 1, k - 1) - falling.narrow(1, 0, k - 1);
  auto weight = (drop * sharpness).exp_();
  if (two_sided) weight.masked_fill_(drop == 0, -1);
  const auto last = at::arange(1, k + 1, counts.options()) >= counts.unsqueeze(1);
  return at::constant_pad_nd(weight, {0, 1}, -1).masked_fill_(last, -1);
}

}  // namespace

SemiseparableResult semiseparable_forward_cpu(const at::Tensor& given_x, const at::Tensor& scores, std::int64_t k,
                                              const std::optional<at::Tensor>& lengths, double sharpness, bool two_sided,
                                              bool keep) {
  const auto x = given_x.contiguous();
  const auto clean = clean_scores(scores, lengths).contiguous();
  const auto ranking = rank_scores(clean, lengths);
  const auto counts = counts_of(x.size(0), k, lengths);
  const auto top = ranking.order.narrow(1, 0, k).to(at::kInt).contiguous();
  auto rank = ranking.ranks.to(at::kInt).masked_fill_(ranking.ranks >= counts.unsqueeze(1), -1);
  if (lengths) rank.masked_fill_(valid_positions(*lengths, scores.size(1)).logical_not_(), -2);
  const auto scalars = at::zeros({scalar_count, x.size(0), k}, clean.options());
  scalars[decay].copy_(decays_of(ranking.scores.narrow(1, 0, k), counts, sharpness, two_sided));
  const auto order = order_of(clean, top, rank, scalars[decay], lengths, sharpness, two_sided);

  // The weights and the mixed scores are the sums of two more columns: ones, and the scores.
  const auto [sums, apart] = sum_rows(order, at::stack({at::ones_like(clean), clean}, 2), two_sided && keep);
  const auto absent = at::arange(k, counts.options()) >= counts.unsqueeze(1);
  scalars[scale].copy_(sums.select(2, 0).reciprocal().masked_fill_(absent, 0));
  const auto mixed = sums.select(2, 1) * scalars[scale];
  auto [mean, slope] = sum_rows(order, x, two_sided && keep);
  mean.mul_(scalars[scale].unsqueeze(2));
  if (two_sided && keep) {
    scalars[tilt].copy_(apart.select(2, 0));
    scalars[score_slope].copy_(apart.select(2, 1) - mixed * scalars[tilt]);
    slope.addcmul_(mean, scalars[tilt].unsqueeze(2), -1);
  }
  const auto leaders = two_sided ? ranking.leaders : ranking.order;
  const auto positions = leaders.narrow(1, 0, k).masked_fill(absent, -1);
  const auto nothing = at::empty({0}, clean.options());
  if (x.scalar_type() == mean.scalar_type()) return {mean, mixed, positions, clean, top, rank, scalars, nothing, slope};
  return {mean.to(x.scalar_type()), mixed, positions, clean, top, rank, scalars, keep ? mean : nothing, slope};
}

std::tuple<at::Tensor, at::Tensor> semiseparable_backward_cpu(
    const at::Tensor& given_gradient, const at::Tensor& given_x, const at::Tensor& scores,
    const std::optional<at::Tensor>& lengths, const at::Tensor& clean, const at::Tensor& top, const at::Tensor& rank,
    const at::Tensor& scalars, const at::Tensor& mean, const at::Tensor& slope, double sharpness, bool two_sided) {
  const auto x = given_x.contiguous();
  const auto order = order_of(clean, top, rank, scalars[decay], lengths, sharpness, two_sided);
  const auto flow = (given_gradient.to(clean.scalar_type()) * scalars[scale].unsqueeze(2)).contiguous();
  auto [x_gradient, gains] = spread_rows(order, x, flow, two_sided ? at::Tensor() : mean.contiguous());
  // Gains count from the output's mean: a column of ones that flows as far as the mean would.
  const auto ones = at::ones({x.size(0), x.size(1), 1}, clean.options());
  gains.sub_(std::get<1>(spread_rows(order, ones, (flow * mean).sum(2, /*keepdim=*/true), at::Tensor())));
  if (two_sided) gains.scatter_add_(1, top.to(at::kLong), (flow * slope).sum(2).neg_());
  return {x_gradient, at::where(scores.abs() <= score_bound, gains.mul_(sharpness), 0)};
}

}  // namespace transpool
