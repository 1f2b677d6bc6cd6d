#include "operators/pooling/relaxed_subset_nodes.cuh"

namespace transpool {
namespace {

/// One warp goes through the rounds; the others prepare what it needs and collect what it leaves.
template <class S>
constexpr int rounds_threads = std::is_same_v<S, double> ? 512 : 1024;
template <class S>
constexpr int helper_warps = rounds_threads<S> / lanes - 1;
constexpr int column_threads = 256;

/// The rounds backwards at the nodes. With b the gradient of the next shares, that of these is alpha b + gamma - moment *
/// sum(beta b): one sum a round, all else is known beforehand.
template <class S>
struct BackwardMemory {
  static constexpr int rows = std::is_same_v<S, double> ? 16 : 32;
  S alpha[2][rows][nodes], beta[2][rows][nodes], gamma[2][rows][nodes];
  S constant[2][rows], sum[2][rows];
};

struct BackwardTables {
  double table[nodes][nodes + 1];
  double moment[nodes], height[nodes];
};

template <class S>
__device__ void prepare_round(const RelaxedSubsetArguments& a, BackwardMemory<S>& memory, const BackwardTables& tables,
                              std::int64_t place, int used, int half, int row, const Binomial& series) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const double power = 1 / a.temperature;
  const S coefficient = lane < used ? static_cast<const S*>(a.coefficient_gradient)[place * nodes + lane] : S(0);
  const double share = a.shares[place * (nodes + 1) + lane], total = a.shares[place * (nodes + 1) + nodes];
  const double scaled = series_scale(lane) * static_cast<double>(coefficient);
  double even = 0, odd = 0;
#pragma unroll 8
  for (int q = 0; q < used; q += 2) {
    even += tables.table[q][lane] * __shfl_sync(every_lane, scaled, q);
    odd += tables.table[q + 1][lane] * __shfl_sync(every_lane, scaled, q + 1);
  }
  const double gradient = even + odd, height = tables.height[lane];
  const double p = height * share;
  const double left = total > smooth<S> * (1 + power) ? 1 - series(p) : exp(power * log1p(-p));
  const double slope = -power * height * share * left / (1 - p);  // over the total
  const double over = 1 / total;
  const double constant = sum_over_warp(gradient * share) * over;
  memory.alpha[half][row][lane] = static_cast<S>(left + slope);
  memory.beta[half][row][lane] = static_cast<S>(slope * share);
  memory.gamma[half][row][lane] = static_cast<S>(gradient * over - constant * tables.moment[lane]);
  if (lane == 0) memory.constant[half][row] = static_cast<S>(constant);
}

/// The gradients of the moments and, through the scores that are mixed, of the scores' moments.
struct MomentGradient {
  double plain = 0, scored = 0;
};

template <class S>
__device__ void collect_round(const RelaxedSubsetArguments& a, const BackwardMemory<S>& memory, std::int64_t place, int half,
                              int row, MomentGradient& gradient) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const double total = a.shares[place * (nodes + 1) + nodes], share = a.shares[place * (nodes + 1) + lane];
  gradient.plain -= static_cast<double>(memory.sum[half][row] + memory.constant[half][row]) * share * total;
  gradient.scored += static_cast<double>(static_cast<const S*>(a.coefficients)[place * nodes + lane]) *
                     static_cast<double>(static_cast<const S*>(a.mixed_gradient)[place]);
}

/// One warp, one node a lane: some rounds backwards.
template <class S>
__device__ S run_backward(BackwardMemory<S>& memory, int half, int count, S moment, S after) {
  constexpr int together = 8;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int end = count; end > 0; end -= together) {
    S alpha[together], beta[together], gamma[together], sums[together];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const int row = max(end - 1 - i, 0);
      alpha[i] = memory.alpha[half][row][lane];
      beta[i] = memory.beta[half][row][lane];
      gamma[i] = memory.gamma[half][row][lane];
    }
#pragma unroll
    for (int i = 0; i < together; ++i) {
      sums[i] = sum_over_warp(beta[i] * after);
      if (end - 1 - i >= 0) after = alpha[i] * after + gamma[i] - moment * sums[i];
    }
#pragma unroll
    for (int i = 0; i < together; ++i)
      if (lane == i && end - 1 - i >= 0) memory.sum[half][end - 1 - i] = sums[i];
  }
  return after;
}

template <class S>
__global__ void __launch_bounds__(rounds_threads<S>) rounds_backward_kernel(RelaxedSubsetArguments a) {
  __shared__ BackwardMemory<S> memory;
  __shared__ BackwardTables tables;
  constexpr int rows = BackwardMemory<S>::rows;
  const auto b = static_cast<std::int64_t>(blockIdx.x);
  let_next_begin();
  const int used = terms_of(a.degree[b]);
  if (used == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % lanes, warp = static_cast<int>(threadIdx.x) / lanes;
  const double* kept = a.frame + b * frame_size;
  const Frame frame(a, b);
  const Binomial series(frame.power);
  fill_table(tables.table);
  __syncthreads();
  double own_moment = 0;
  for (int q = 0; q < nodes; ++q) own_moment += series_scale(q) * tables.table[q][lane] * kept[relaxed_subset_frame + q];
  if (warp == 0) {
    tables.moment[lane] = own_moment;
    tables.height[lane] = exp((frame.centre - frame.highest + frame.half * tables.table[1][lane]) * frame.power);
  }
  __syncthreads();
  const auto chunks = (a.rounds + rows - 1) / rows;
  const auto moment = static_cast<S>(own_moment);
  S after = 0;
  MomentGradient gradient;
  // At a time, the first warp goes through chunk `ready`; the others prepare the one that comes next, and collect the last.
  for (auto ready = chunks; ready >= -1; --ready) {
    const auto next = ready - 1, done = ready + 1;
    if (warp == 0) {
      if (ready >= 0 && ready < chunks)
        after = run_backward(memory, static_cast<int>(ready % 2),
                             static_cast<int>(min(static_cast<std::int64_t>(rows), a.rounds - ready * rows)), moment, after);
    } else {
      // The two chunks stand in the same half: what is collected of a row is read before that row is prepared anew.
      for (int row = warp - 1; row < rows; row += helper_warps<S>) {
        if (done < chunks && done * rows + row < a.rounds)
          collect_round(a, memory, b * a.rounds + done * rows + row, static_cast<int>(done % 2), row, gradient);
        __syncwarp();
        if (next >= 0 && next * rows + row < a.rounds)
          prepare_round(a, memory, tables, b * a.rounds + next * rows + row, used, static_cast<int>(next % 2), row, series);
      }
    }
    __syncthreads();
  }
  // The arrays of the rounds are free now.
  auto* partial = reinterpret_cast<MomentGradient(*)[nodes]>(&memory);
  if (warp > 0) partial[warp - 1][lane] = gradient;
  __syncthreads();
  if (warp != 0) return;
  MomentGradient all;
  for (int i = 0; i < helper_warps<S>; ++i) {
    all.plain += partial[i][lane].plain;
    all.scored += partial[i][lane].scored;
  }
  double of_moment = 0;
  for (int d = 0; d < nodes; ++d) of_moment += tables.table[lane][d] * __shfl_sync(every_lane, all.plain, d);
  a.frame_gradient[b * 2 * nodes + lane] = series_scale(lane) * of_moment;
  a.frame_gradient[b * 2 * nodes + nodes + lane] = all.scored;
}

/// One column a thread: its polynomials, and what their coefficients and moments give back to it.
struct ColumnGradient {
  Polynomials<double> value;
  Slopes slope;
  const double* of_moments;
  double over_half, power, score, gradient = 0, score_gradient = 0;

  __device__ ColumnGradient(const RelaxedSubsetArguments& a, const Frame& frame, std::int64_t b, double place, double height,
                            double score)
      : value(place, height),
        slope(place, height),
        of_moments(a.frame_gradient + b * 2 * nodes),
        over_half(1 / frame.half),
        power(frame.power),
        score(score) {}

  __device__ void take(int q, double of_coefficient) {
    const double of_mixed = of_moments[nodes + q], now = value.next();
    gradient += (of_coefficient + score * of_mixed + of_moments[q]) * (slope.next() * over_half + now * power);
    score_gradient += now * of_mixed;
  }
};

template <class S>
__global__ void __launch_bounds__(column_threads) column_gradient_kernel(RelaxedSubsetArguments a) {
  const auto b = static_cast<std::int64_t>(blockIdx.y),
             j = static_cast<std::int64_t>(blockIdx.x) * column_threads + threadIdx.x;
  const int terms = terms_of(a.degree[b]);
  if (terms == 0 || j >= a.length) return;
  const Frame frame(a, b);
  const auto place = column_of<S>(a, b, j);
  ColumnGradient column(a, frame, b, static_cast<double>(place.element[0]), static_cast<double>(place.element[1]),
                        static_cast<double>(static_cast<const S*>(a.scores)[b * a.length + j]));
  const auto* dots = static_cast<const S*>(a.polynomial_dots) + b * nodes * a.length + j;
  // The moments' gradient has more terms than the coefficients that the weights need.
#pragma unroll
  for (int q = 0; q < nodes; ++q) column.take(q, q < terms ? static_cast<double>(dots[q * a.length]) : 0.0);
  a.gradient[b * a.length + j] = column.gradient;
  static_cast<S*>(a.score_gradient)[b * a.length + j] = static_cast<S>(column.score_gradient);
}

}  // namespace

const char* relaxed_subset_interpolated_backward_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return by_sum(a, [&]<class S>() {
    launch(rounds_backward_kernel<S>, dim3(static_cast<unsigned>(a.batch)), rounds_threads<S>, false, stream, a);
  });
}

const char* relaxed_subset_column_gradient_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return by_sum(a, [&]<class S>() {
    const dim3 grid(static_cast<unsigned>((a.length + column_threads - 1) / column_threads), static_cast<unsigned>(a.batch));
    launch(column_gradient_kernel<S>, grid, column_threads, false, stream, a);
  });
}

}  // namespace transpool
