#include "operators/pooling/relaxed_subset.cuh"

#include <type_traits>

namespace transpool {
namespace {

constexpr int threads = 256;
constexpr int moment_columns = 128;  // columns whose basis stands in shared memory at a time
constexpr int groups = threads / nodes;
/// One warp goes through the rounds and the others follow it. Forward, more of them would only take its turns; backward they
/// have more to prepare.
constexpr int rounds_threads = 512;
template <class S>
constexpr int backward_threads = std::is_same_v<S, double> ? 512 : 1024;
template <int Threads>
constexpr int helper_warps = Threads / lanes - 1;

/// Coefficients this small against the largest: the tail that is left, and the one that shows that a series converges.
template <class S>
constexpr double negligible = std::is_same_v<S, double> ? 1e-13 : 3e-8;
template <class S>
constexpr double converged = std::is_same_v<S, double> ? 1e-12 : 1e-7;
constexpr int tail = 4;
/// A round is a short series of p where the total of all weights is so many times 1 + power: p and power * p are under this
/// number's inverse. The terms below then leave out less than S holds.
template <class S>
constexpr double smooth = std::is_same_v<S, double> ? 512 : 16;

template <class C>
__device__ C sum_over_warp(C value) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(every_lane, value, step);
  return value;
}

__device__ double series_scale(int q) { return (q == 0 ? 1.0 : 2.0) / nodes; }

struct Extremes {
  double lowest, highest;
  int leader, rows;  // up to the last that is valid

  __device__ void take(const Extremes& other) {
    lowest = fmin(lowest, other.lowest);
    rows = max(rows, other.rows);
    if (other.highest < highest || (other.highest == highest && other.leader >= leader)) return;
    highest = other.highest;
    leader = other.leader;
  }
};

__device__ Extremes extremes_of(const RelaxedSubsetArguments& a, std::int64_t b) {
  __shared__ Extremes of_warps[threads / lanes];
  const double* row = a.a + b * a.length;
  Extremes own = {-2 * floor_logit, 2 * floor_logit, 0, 0};
  constexpr int at_once = 8;
  for (int first = static_cast<int>(threadIdx.x); first < a.length; first += at_once * threads) {
    double value[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) value[i] = first + i * threads < a.length ? row[first + i * threads] : floor_logit;
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (value[i] > floor_logit) own.take({value[i], value[i], first + i * threads, first + i * threads + 1});
  }
  for (int step = lanes / 2; step > 0; step /= 2)
    own.take({__shfl_xor_sync(every_lane, own.lowest, step), __shfl_xor_sync(every_lane, own.highest, step),
              __shfl_xor_sync(every_lane, own.leader, step), __shfl_xor_sync(every_lane, own.rows, step)});
  if (threadIdx.x % lanes == 0) of_warps[threadIdx.x / lanes] = own;
  __syncthreads();
  for (int warp = 0; warp < threads / lanes; ++warp) own.take(of_warps[warp]);
  return own;
}

/// The interval of the scores and, for each part of the columns, the sums of e^((a - highest) / temperature) times each
/// Chebyshev polynomial, plain and with the scores as a factor.
template <class S>
__global__ void __launch_bounds__(threads) moments_kernel(RelaxedSubsetArguments a) {
  __shared__ double basis[moment_columns][nodes + 1];
  __shared__ double score[moment_columns];
  __shared__ double partial[2][groups][nodes];
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  const int part = static_cast<int>(blockIdx.x), parts = static_cast<int>(gridDim.x);
  const auto extremes = extremes_of(a, b);
  const Frame frame(extremes.lowest, extremes.highest, a.temperature);
  double* kept = a.frame + b * frame_size;
  if (part == 0 && threadIdx.x == 0) {
    kept[0] = frame.centre;
    kept[1] = frame.half;
    kept[2] = frame.highest;
    kept[3] = extremes.leader;
    kept[4] = extremes.rows;
  }
  const int q = static_cast<int>(threadIdx.x) % nodes, group = static_cast<int>(threadIdx.x) / nodes;
  double plain = 0, scored = 0;
  for (int first = part * moment_columns; first < a.length; first += parts * moment_columns) {
    __syncthreads();
    if (threadIdx.x < moment_columns) {
      const int column = static_cast<int>(threadIdx.x);
      const auto j = first + column;
      const double own = j < a.length ? a.a[b * a.length + j] : floor_logit;
      score[column] = j < a.length ? static_cast<double>(static_cast<const S*>(a.scores)[b * a.length + j]) : 0;
      const double place = frame.place(own), height = frame.height(own);
      if (j < a.length)
        static_cast<Pack<S, 2>*>(a.columns)[b * a.length + j] = {static_cast<S>(place), static_cast<S>(height)};
      Polynomials<double> polynomials(place, height);
#pragma unroll
      for (int i = 0; i < nodes; ++i) basis[column][i] = polynomials.next();
    }
    __syncthreads();
    for (int column = group; column < moment_columns; column += groups) {
      plain += basis[column][q];
      scored += basis[column][q] * score[column];
    }
  }
  partial[0][group][q] = plain;
  partial[1][group][q] = scored;
  __syncthreads();
  if (group > 1) return;
  double sum = 0;
  for (int i = 0; i < groups; ++i) sum += partial[group][i][q];
  a.sums[((b * parts + part) * 2 + group) * nodes + q] = sum;
}

/// 1 - (1 - p)^power for small p and power * p (see `smooth`), by the binomial series.
struct Binomial {
  static constexpr int terms = 7;
  double factor[terms];

  __device__ explicit Binomial(double power) {
    for (int i = 0; i < terms; ++i) factor[i] = (power - i) / (i + 1);
  }
  __device__ double operator()(double p) const {
    double sum = 1;
#pragma unroll
    for (int i = terms - 1; i > 0; --i) sum = 1 - factor[i] * p * sum;
    return factor[0] * p * sum;
  }
};

/// The same in float32, times `scale`. Terms in pairs, since a round waits for their sum.
struct ShortBinomial {
  float factor[6];

  __device__ explicit ShortBinomial(double power) {
    double product = power;
    for (int i = 0; i < 6; product *= (++i - power) / (i + 1)) factor[i] = static_cast<float>(product);
  }
  __device__ float operator()(float p, float scale) const {
    const float square = p * p;
    const auto pair = [&](int i) { return fmaf(p, factor[i + 1], factor[i]); };
    return scale * p * fmaf(square, fmaf(square, pair(4), pair(2)), pair(0));
  }
};

__device__ float reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

/// A float64 number as the sum of two float32 ones, for differences that are small against it.
struct Twofold {
  float high, low;

  __device__ explicit Twofold(double value)
      : high(static_cast<float>(value)), low(static_cast<float>(value - static_cast<double>(high))) {}
  __device__ float rounded() const { return high + low; }
  __device__ double exact() const { return static_cast<double>(high) + static_cast<double>(low); }
  /// Returns what is left, up to half a unit in the last place of it, before the last digits are known.
  __device__ float subtract(float value) {
    const float next = high - value, left = next + low;
    low += (high - next) - value;
    high = next;
    return left;
  }
};

constexpr int chunk = 32;

/// The rounds at one node a lane: `share` is the weight over e^(a / temperature) times the sum of all.
/// In float64, the sum is taken afresh each round.
template <class S>
class Chain {
 public:
  __device__ Chain(double height, double moment, double power)
      : height_(height), moment_(moment), power_(power), series_(power) {}
  __device__ double total() const { return total_; }
  __device__ void run(int count, double (*shares)[nodes + 1], double* totals) {
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    for (int i = 0; i < count; ++i) {
      total_ = sum_over_warp(share_ * moment_);
      shares[i][lane] = share_;
      totals[i] = total_;
      const double p = height_ * share_ * __drcp_rn(total_);
      share_ *= total_ > smooth<double> * (1 + power_) ? 1 - series_(p) : exp(power_ * log1p(-fmin(p, 0.75)));
    }
  }

 private:
  double height_, moment_, power_, share_ = 1, total_ = 0;
  Binomial series_;
};

/// In float32, whose digits are enough for what a round takes away: the sum of it is subtracted from that of all. A sum over
/// integers is one instruction; it is under 4 * power, and its last bit under every digit that is kept.
template <>
class Chain<float> {
 public:
  __device__ Chain(double height, double moment, double power)
      : height_(static_cast<float>(height)),
        moment_(static_cast<float>(moment * exp2(27.0) / power)),
        unscale_(static_cast<float>(power * exp2(-27.0))),
        power_(power),
        share_(1),
        total_(sum_over_warp(moment)),
        series_(power) {}
  __device__ double total() const { return total_.exact(); }
  __device__ void run(int count, double (*shares)[nodes + 1], double* totals) {
    // A round takes less than 4 * power from the total.
    if (total() - 4 * chunk * power_ > smooth<float> * (1 + power_)) run(count, shares, totals, series_);
    else
      run(count, shares, totals, [power = static_cast<float>(power_)](float p, float scale) {
        return scale * -expm1f(power * log1pf(-fminf(p, 0.75f)));
      });
  }

 private:
  /// part_of(p, scale): scale times what a round takes of a weight of p.
  template <class Part>
  __device__ void run(int count, double (*shares)[nodes + 1], double* totals, Part part_of) {
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    float total = total_.rounded();
#pragma unroll 2
    for (int i = 0; i < count; ++i) {
      const float now = share_.rounded();
      *reinterpret_cast<float2*>(&shares[i][lane]) = {share_.high, share_.low};
      *reinterpret_cast<float2*>(&totals[i]) = {total_.high, total_.low};
      const float p = height_ * now * reciprocal(total);
      const int own = __float2int_rn(part_of(p, moment_ * now));
      total = total_.subtract(static_cast<float>(__reduce_add_sync(every_lane, own)) * unscale_);
      share_.subtract(part_of(p, now));
    }
  }

  float height_, moment_, unscale_;
  double power_;
  Twofold share_, total_;
  ShortBinomial series_;
};

/// What `Chain<S>` has written.
template <class S>
__device__ double read_back(const double& kept) {
  if constexpr (std::is_same_v<S, double>) return kept;
  const auto parts = *reinterpret_cast<const float2*>(&kept);
  return static_cast<double>(parts.x) + static_cast<double>(parts.y);
}

struct RoundsMemory {
  double table[nodes][nodes + 1];
  double moments[2][nodes];
  double mixing[nodes];  // what a share adds to the mixed score
  double share[2][chunk][nodes + 1];
  double total[2][chunk];
  double folded[rounds_threads / lanes][2][nodes / 2 + 2];  // of a warp; apart, so that both halves are in different banks
  int degree, irregular;
};

__device__ void fill_table(double (&table)[nodes][nodes + 1]) {
  for (int i = static_cast<int>(threadIdx.x); i < nodes * nodes; i += static_cast<int>(blockDim.x))
    table[i / nodes][i % nodes] = cospi((i / nodes) * (i % nodes + 0.5) / nodes);
}

/// A warp that makes the shares of rounds into series, each lane one coefficient. Polynomials of even order are the same on
/// both sides of the interval and odd ones change their sign, so that half of the nodes are enough, of sums or differences.
/// It keeps off shared memory, and what else goes through its pipe, as the warp of the rounds waits for the same.
template <class S>
class SeriesWriter {
 public:
  __device__ SeriesWriter(const RelaxedSubsetArguments& a, RoundsMemory& memory, std::int64_t b)
      : a_(a), memory_(memory), b_(b), folded_(memory.folded[threadIdx.x / lanes]) {
    for (int d = 0; d < nodes / 2; ++d) polynomial_[d] = memory.table[lane()][d];
  }

  __device__ void write(std::int64_t round) {
    const auto row = static_cast<int>(round % chunk), half = static_cast<int>(round / chunk % 2);
    const double scale = 1 / read_back<S>(memory_.total[half][row]);
    const double share = read_back<S>(memory_.share[half][row][lane()]);
    const double coefficient = transform(share, read_back<S>(memory_.share[half][row][nodes - 1 - lane()])) * scale;
    const auto place = b_ * a_.rounds + round;
    a_.shares[place * (nodes + 1) + lane()] = share * scale;
    static_cast<S*>(a_.coefficients)[place * nodes + lane()] = static_cast<S>(coefficient);
    const double size = fabs(coefficient), most = fabs(__shfl_sync(every_lane, coefficient, 0));
    const auto needed = __ballot_sync(every_lane, !(size <= negligible<S> * most));
    degree_ = max(degree_, lanes - __clz(static_cast<int>(needed)));
    if (lane() >= nodes - tail && !(size <= converged<S> * most)) memory_.irregular = 1;
  }
  __device__ int degree() const { return degree_; }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % lanes; }

  /// The lane's coefficient, from its own share and the one on the other side.
  __device__ double transform(double own, double mirrored) {
    const bool odd = lane() >= nodes / 2;
    __syncwarp();
    folded_[odd][odd ? nodes - 1 - lane() : lane()] = odd ? mirrored - own : own + mirrored;
    __syncwarp();
    const auto* given = reinterpret_cast<const double2*>(folded_[lane() % 2]);
    double sum = 0, next_sum = 0;
#pragma unroll
    for (int d = 0; d < nodes / 2; d += 2) {
      const auto pair = given[d / 2];
      sum += pair.x * polynomial_[d];
      next_sum += pair.y * polynomial_[d + 1];
    }
    return (sum + next_sum) * series_scale(lane());
  }

  const RelaxedSubsetArguments& a_;
  RoundsMemory& memory_;
  const std::int64_t b_;
  double (&folded_)[2][nodes / 2 + 2];
  double polynomial_[nodes / 2];
  int degree_ = 1;
};

/// One warp: of each round of a chunk, a lane each, the mixed score, the total and the row of largest weight.
template <class S>
__device__ void write_totals(const RelaxedSubsetArguments& a, const RoundsMemory& memory, std::int64_t b,
                             std::int64_t first) {
  const int lane = static_cast<int>(threadIdx.x) % lanes, half = static_cast<int>(first / chunk % 2);
  if (first + lane >= a.rounds) return;
  double sum = 0;
#pragma unroll 8
  for (int d = 0; d < nodes; ++d) sum += read_back<S>(memory.share[half][lane][d]) * memory.mixing[d];
  const double total = read_back<S>(memory.total[half][lane]);
  const auto place = b * a.rounds + first + lane;
  a.shares[place * (nodes + 1) + nodes] = total;
  static_cast<S*>(a.mixed)[place] = static_cast<S>(sum / total);
  a.top[place] = static_cast<std::int64_t>(a.frame[b * frame_size + 3]);
}

/// The moments of a batch row, and what follows from them for the shares at each node.
__device__ void read_moments(const RelaxedSubsetArguments& a, RoundsMemory& memory, std::int64_t b) {
  if (threadIdx.x < 2 * nodes) {
    double sum = 0;
    for (int part = 0; part < relaxed_subset_parts; ++part)
      sum += a.sums[(b * relaxed_subset_parts + part) * 2 * nodes + threadIdx.x];
    memory.moments[threadIdx.x / nodes][threadIdx.x % nodes] = sum;
    a.frame[b * frame_size + relaxed_subset_frame + threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= nodes) return;
  double sum = 0;
  for (int q = 0; q < nodes; ++q) sum += series_scale(q) * memory.table[q][threadIdx.x] * memory.moments[1][q];
  memory.mixing[threadIdx.x] = sum;
}

/// A round maps every weight u = e^(a / temperature) to u (1 - u / Z)^(1 / temperature), Z being the sum of all: one
/// function of the score for all columns. Where it is smooth, it is known from its values at a few nodes: the rounds run
/// there, one node a lane, and Z is a weighted sum of these values. One warp goes through the rounds; the others follow it.
template <class S>
__global__ void __launch_bounds__(rounds_threads) rounds_kernel(RelaxedSubsetArguments a) {
  __shared__ RoundsMemory memory;
  constexpr int writers = rounds_threads / lanes - 2;
  const auto b = static_cast<std::int64_t>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % lanes, warp = static_cast<int>(threadIdx.x) / lanes;
  let_next_begin();
  const Frame frame(a, b);
  const double power = frame.power;
  fill_table(memory.table);
  if (threadIdx.x == 0) {
    memory.degree = 1;
    memory.irregular = !(frame.half * power < 40);
  }
  read_moments(a, memory, b);
  __syncthreads();
  double moment = 0;
  for (int q = 0; q < nodes; ++q) moment += series_scale(q) * memory.table[q][lane] * memory.moments[0][q];
  Chain<S> chain(exp((frame.centre - frame.highest + frame.half * memory.table[1][lane]) * power), moment, power);
  SeriesWriter<S> series(a, memory, b);
  for (std::int64_t first = 0; first < a.rounds + chunk && !memory.irregular; first += chunk) {
    const auto half = static_cast<int>(first / chunk % 2);
    __syncthreads();
    if (warp == 0) {
      chain.run(static_cast<int>(min(static_cast<std::int64_t>(chunk), a.rounds - first)), memory.share[half],
                memory.total[half]);
      // The total falls. No weight then passes half of where the map would cease to rise with the score.
      if (lane == 0 && !(chain.total() > 2 * (1 + power))) memory.irregular = 1;
    } else if (first > 0 && warp <= writers) {
      const auto end = min(first, a.rounds);
      for (auto round = first - chunk + warp - 1; round < end; round += writers) series.write(round);
    } else if (first > 0) {
      write_totals<S>(a, memory, b, first - chunk);
    }
    __syncthreads();
  }
  if (lane == 0) atomicMax(&memory.degree, series.degree());
  __syncthreads();
  if (threadIdx.x == 0) a.degree[b] = memory.irregular ? 0 : memory.degree;
}

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
__global__ void __launch_bounds__(backward_threads<S>) rounds_backward_kernel(RelaxedSubsetArguments a) {
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
      for (int row = warp - 1; row < rows; row += helper_warps<backward_threads<S>>) {
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
  for (int i = 0; i < helper_warps<backward_threads<S>>; ++i) {
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
__global__ void __launch_bounds__(threads) column_gradient_kernel(RelaxedSubsetArguments a) {
  const auto b = static_cast<std::int64_t>(blockIdx.y), j = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
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

/// call<S>() for the type of the sums.
template <class Call>
const char* by_sum(const RelaxedSubsetArguments& a, Call call) {
  if (a.element == Element::float64) call.template operator()<double>();
  else call.template operator()<float>();
  return launch_error();
}

}  // namespace

const char* relaxed_subset_interpolated_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return by_sum(a, [&]<class S>() {
    const auto batch = static_cast<unsigned>(a.batch);
    launch(moments_kernel<S>, dim3(static_cast<unsigned>(relaxed_subset_parts), batch), threads, false, stream, a);
    launch(rounds_kernel<S>, dim3(batch), rounds_threads, false, stream, a);
  });
}

const char* relaxed_subset_interpolated_backward_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return by_sum(a, [&]<class S>() {
    launch(rounds_backward_kernel<S>, dim3(static_cast<unsigned>(a.batch)), backward_threads<S>, false, stream, a);
  });
}

const char* relaxed_subset_column_gradient_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return by_sum(a, [&]<class S>() {
    const dim3 grid(static_cast<unsigned>((a.length + threads - 1) / threads), static_cast<unsigned>(a.batch));
    launch(column_gradient_kernel<S>, grid, threads, false, stream, a);
  });
}

}  // namespace transpool
