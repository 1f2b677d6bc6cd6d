#include "operators/pooling/relaxed_subset_nodes.cuh"

namespace transpool {
namespace {

constexpr int threads = 256;
constexpr int moment_columns = 128;  // columns whose basis stands in shared memory at a time
constexpr int groups = threads / nodes;

/// One warp goes through the rounds and the others follow it; more of them would only take its turns.
constexpr int rounds_threads = 512;

/// Coefficients this small against the largest: the tail that is left, and the one that shows that a series converges.
template <class S>
constexpr double negligible = std::is_same_v<S, double> ? 1e-13 : 3e-8;
template <class S>
constexpr double converged = std::is_same_v<S, double> ? 1e-12 : 1e-7;
constexpr int tail = 4;

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

/// `Binomial` in float32, times `scale`, and good from `smooth<float>` on. Terms in pairs, since a round waits for their
/// sum.
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

}  // namespace

const char* relaxed_subset_interpolated_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return by_sum(a, [&]<class S>() {
    const auto batch = static_cast<unsigned>(a.batch);
    launch(moments_kernel<S>, dim3(static_cast<unsigned>(relaxed_subset_parts), batch), threads, false, stream, a);
    launch(rounds_kernel<S>, dim3(batch), rounds_threads, false, stream, a);
  });
}

}  // namespace transpool
