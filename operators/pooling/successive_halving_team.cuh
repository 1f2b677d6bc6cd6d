#pragma once

#include "operators/pooling/successive_halving_layer.cuh"

#include <cmath>
#include <type_traits>

namespace transpool {

/// The backward pass by teams: the warps of a block share the columns of an output's rows and hold its tree one leaf a
/// lane. The copy engine brings the rows of the next output meanwhile. For outputs of few leaves in packs of 16 bytes.
constexpr int team_most_rounds = 5;
constexpr int team_most_warps = 8;
constexpr int team_stages = 2;  // outputs whose rows are in shared memory at once

/// Of 16 bytes that a lane has of a row: more columns where a tree is small.
template <class T, int Rounds>
constexpr int team_packs = (Rounds > 2 ? 8 : 16) * sizeof(T) / 16;

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// A barrier in shared memory that bytes on their way are counted at.
struct Arrival {
  unsigned address;

  __device__ explicit Arrival(const unsigned long long* barrier) : address(shared_address(barrier)) {}
  __device__ void init() const {
    asm volatile(
        "mbarrier.init.shared.b64 [%0], 1;\n"
        "fence.proxy.async.shared::cta;" ::"r"(address)
        : "memory");
  }
  __device__ void expect(unsigned bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
  }
  __device__ void wait(unsigned parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "WAIT: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra WAIT;\n"
        "}" ::"r"(address),
        "r"(parity)
        : "memory");
  }
  /// Brings `bytes`, a multiple of 16, from global memory.
  __device__ void bring(void* to, const void* from, unsigned bytes) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(address)
        : "memory");
  }
};

/// An element of the scores or of what has their dtype.
__device__ inline double score_at(const SuccessiveHalvingArguments& a, const void* scores, std::int64_t i) {
  return a.float64_scores ? static_cast<const double*>(scores)[i] : static_cast<const float*>(scores)[i];
}

__device__ inline void set_score_gradient(const SuccessiveHalvingArguments& a, std::int64_t i, double value) {
  if (a.float64_scores) static_cast<double*>(a.score_gradient)[i] = value;
  else static_cast<float*>(a.score_gradient)[i] = static_cast<float>(value);
}

/// Sums of each of `Count` values over the warp, `Step` lanes of which differ already: lane i gets that of value
/// i / Step % Count.
template <int Step = 1, int Count, class Sum>
__device__ Sum sum_each_in_warp(const Sum (&value)[Count]) {
  if constexpr (Count > 1) {
    Sum half[Count / 2];
    const bool odd = threadIdx.x & Step;
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) {
      const Sum sent = odd ? value[2 * i] : value[2 * i + 1], kept = odd ? value[2 * i + 1] : value[2 * i];
      half[i] = kept + __shfl_xor_sync(0xffffffffu, sent, Step);
    }
    return sum_each_in_warp<2 * Step>(half);
  } else {
    Sum sum = value[0];
#pragma unroll
    for (int step = Step; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
  }
}

/// Brings the gradients of an output's score and of its leaves' weights down to the leaves' scores, of which this lane has
/// one and is given that of its leaf; `real`: which leaves are valid rows. Plays the tournament again.
template <int Rounds>
__device__ double leaf_gradient(double score, double gain, unsigned real, double slot_gradient, double log2_base) {
  const int leaf = threadIdx.x % (1 << Rounds);
  double own[Rounds], gap[Rounds], lead[Rounds], kept[Rounds];  // of this lane's node in each round
#pragma unroll
  for (int r = 0; r < Rounds; ++r) {
    const bool weaker = leaf >> r & 1;
    const double other = __shfl_xor_sync(0xffffffffu, score, 1 << r),
                 others_gain = __shfl_xor_sync(0xffffffffu, gain, 1 << r);
    const double a = weaker ? other : score, b = weaker ? score : other;
    const int first_of_weaker = (leaf >> (r + 1) << (r + 1)) + (1 << r);
    const auto [share, given, mixed] = shares_of(a, b, log2_base, real >> first_of_weaker & 1);
    own[r] = score;
    kept[r] = weaker ? given : share;
    gap[r] = weaker ? others_gain - gain : gain - others_gain;
    lead[r] = finite_or_zero(a - b);
    gain = weaker ? share * others_gain + given * gain : share * gain + given * others_gain;
    score = mixed;
  }
  double above = slot_gradient, weight = 1;
#pragma unroll
  for (int number = 1; number <= Rounds; ++number) {
    constexpr double ln_2 = 0.6931471805599453;
    const int r = Rounds - number;
    const double share_gradient = weight * gap[r] + above * lead[r];
    const double both = kept[r] * (1 - kept[r]);
    const double exponent = log2_base * own[r];
    const double power = is_moderate(exponent) ? short_exp2(exponent) : exp2(exponent);
    const double slope = both == 0 ? 0 : finite_or_zero(both * log2_base * ln_2 * power);
    above = above * kept[r] + (leaf >> r & 1 ? -share_gradient : share_gradient) * slope;
    weight *= kept[r];
  }
  return above;
}

/// What a lane has of a row of x, of dout or of dx: packs of 16 bytes, 32 packs apart.
template <class T, int Packs>
struct TeamRow {
  static constexpr int V = 16 / sizeof(T);
  RawPack<T, V> pack[Packs];

  static __device__ int column(int p) {
    return static_cast<int>((threadIdx.x / 32 * Packs + p) * 32 + threadIdx.x % 32) * V;
  }

  __device__ float at(int p, int v) const { return pack[p].at(v); }

  __device__ void read(const T* row, std::int64_t width) {
#pragma unroll
    for (int p = 0; p < Packs; ++p)
      if (column(p) < width) pack[p].read(row + column(p));
  }

  static __device__ void write(const float (&value)[Packs][V], T* row, std::int64_t width) {
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      Pack<T, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.element[v] = static_cast<T>(value[p][v]);
      if (column(p) < width) *reinterpret_cast<Pack<T, V>*>(row + column(p)) = result;
    }
  }

  __device__ void add_to(float (&value)[Packs][V], float factor) const {
#pragma unroll
    for (int p = 0; p < Packs; ++p)
#pragma unroll
      for (int v = 0; v < V; ++v) value[p][v] += factor * at(p, v);
  }

  __device__ float dot(const TeamRow& other) const {
    float sum = 0;
#pragma unroll
    for (int p = 0; p < Packs; ++p)
#pragma unroll
      for (int v = 0; v < V; ++v) sum += at(p, v) * other.at(p, v);
    return sum;
  }
};

/// The scorer's weight, and what its gradients have gained so far, at the columns of a lane.
template <class T, int Packs>
struct TeamScorer {
  using Row = TeamRow<T, Packs>;
  float weight[Packs][Row::V], sum[Packs][Row::V] = {};
  float bias = 0;  // what this lane's leaves gave

  __device__ explicit TeamScorer(const SuccessiveHalvingLayerArguments& l) {
#pragma unroll
    for (int p = 0; p < Packs; ++p)
#pragma unroll
      for (int v = 0; v < Row::V; ++v)
        weight[p][v] = Row::column(p) < l.pooling.width ? element_at<float>(l.weight, l.precision, Row::column(p) + v) : 0;
  }

  /// Of a row that the loss gains `gain` from a unit of logit of. `row_gradient` gains too.
  __device__ void learn(const Row& x, float gain, Element precision, float (&row_gradient)[Packs][Row::V]) {
#pragma unroll
    for (int p = 0; p < Packs; ++p)
#pragma unroll
      for (int v = 0; v < Row::V; ++v) {
        sum[p][v] += gain * rounded<T>(x.at(p, v), precision);
        row_gradient[p][v] += gain * weight[p][v];
      }
  }

  /// Writes the team's sums: those of weight's gradient, and that of bias' behind them. `leaves` lanes have one.
  __device__ void write(float* sums, std::int64_t width, int leaves) const {
#pragma unroll
    for (int p = 0; p < Packs; ++p)
#pragma unroll
      for (int v = 0; v < Row::V; ++v)
        if (Row::column(p) < width) sums[Row::column(p) + v] = sum[p][v];
    const float all = sum_in_warp(static_cast<int>(threadIdx.x % 32) < leaves ? bias : 0.0f);
    if (threadIdx.x == 0) sums[width] = all;
  }
};

/// What there is to know of a scorer where there is none.
struct NoScorer {
  __device__ explicit NoScorer(const SuccessiveHalvingLayerArguments&) {}
};

/// The sum of `value` over the team's warps, lane by lane, in their order. `sums` is not to be written again before the
/// next but one barrier.
__device__ inline float sum_over_team(float value, float (*sums)[32]) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (warps == 1) return value;
  sums[threadIdx.x / 32][lane] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < warps; ++warp) sum += sums[warp][lane];
  return sum;
}

/// What a team is to know of an output: one leaf a lane, again and again.
template <class T, int Rounds, bool Scorer>
struct TeamOutput {
  static constexpr int leaves = 1 << Rounds;
  static constexpr unsigned leaf_mask = leaves < 32 ? (1u << leaves % 32) - 1 : ~0u;
  using Row = TeamRow<T, team_packs<T, Rounds>>;

  Row out;  // its gradient
  std::int64_t first_row = 0;
  double score = 0, slot_gradient = 0;
  int row = 0;                   // of the leaf, valid or not
  float weight = 0;              // of the leaf, 0 where its row is no part of the output
  unsigned read = 0, valid = 0;  // leaves whose rows are read; that are valid
  bool counts = false;           // the leaf's score has a gradient

  /// For slots past the last there is nothing to do.
  __device__ TeamOutput(const SuccessiveHalvingArguments& a, std::int64_t slot, const Leaf<float>& leaf) {
    if (slot >= a.batch * a.slots) return;
    const auto* all = static_cast<const Leaf<float>*>(a.leaves) + slot * leaves;
    const float least = least_weight(all, leaves, a.epsilon);
    first_row = slot / static_cast<unsigned>(a.slots) * a.length;
    row = leaf.row < 0 ? ~leaf.row : leaf.row;
    const bool there = leaf.row >= 0 && leaf.weight != 0, mixed = there && leaf.weight >= least;
    weight = mixed ? leaf.weight : 0;
    read = __ballot_sync(0xffffffffu, Scorer ? there : mixed);
    valid = __ballot_sync(0xffffffffu, leaf.row >= 0);
    score = leaf.row >= 0 ? score_at(a, a.scores, first_row + row) : -infinity();
    slot_gradient = a.slot_gradient ? score_at(a, a.slot_gradient, slot) : 0;
    out.read(static_cast<const T*>(a.values_gradient) + slot * a.width, a.width);
    counts = leaf.row >= 0 && (!Scorer || there) && !isnan(score);
  }

  /// Sends for the rows. By one warp.
  __device__ void fetch(const SuccessiveHalvingArguments& a, T* stage, const Arrival& arrival) const {
    const auto bytes = static_cast<unsigned>(a.width * sizeof(T));
    const int lane = threadIdx.x;
    if (lane == 0) arrival.expect(__popc(read & leaf_mask) * bytes);
    __syncwarp();
    if (lane < leaves && read >> lane & 1)
      arrival.bring(stage + lane * a.width, static_cast<const T*>(a.x) + (first_row + row) * a.width, bytes);
  }

  __device__ bool all_read() const { return read == 0xffffffffu; }

  /// <x, dout> of this lane's leaf, by the whole team.
  __device__ float dot(const T* stage, std::int64_t width, float (*sums)[32]) const {
    float each[leaves];
#pragma unroll
    for (int c = 0; c < leaves; ++c) {
      Row x;  // of the output that was there before, or of none, where it is not read
      x.read(stage + c * width, width);
      each[c] = x.dot(out);
    }
    return sum_over_team(sum_each_in_warp(each), sums);
  }
};

/// A team works on every so many-th output. With a scorer, dx has its part, and what the outputs give to its gradients is
/// added up; else the gradient of the scores is written.
template <class T, int Rounds, bool Scorer>
__global__ void __launch_bounds__(32 * team_most_warps)
    team_backward_kernel(SuccessiveHalvingLayerArguments l, double log2_base) {
  using Output = TeamOutput<T, Rounds, Scorer>;
  using Row = typename Output::Row;
  constexpr int leaves = Output::leaves, packs = team_packs<T, Rounds>;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ unsigned long long barriers[team_stages];
  __shared__ float sums[2][team_most_warps][32];
  const auto& a = l.pooling;
  const std::int64_t outputs = a.batch * a.slots;
  const auto leaf_of = [&](std::int64_t slot) {
    return slot < outputs ? static_cast<const Leaf<float>*>(a.leaves)[slot * leaves + threadIdx.x % leaves] : Leaf<float>{};
  };
  const auto stage_of = [&](unsigned turn) { return reinterpret_cast<T*>(memory) + turn % team_stages * leaves * a.width; };
  const auto arrival_of = [&](unsigned turn) { return Arrival(&barriers[turn % team_stages]); };
  const auto fetch = [&](const Output& output, std::int64_t slot, unsigned turn) {
    if (threadIdx.x < 32 && slot < outputs) output.fetch(a, stage_of(turn), arrival_of(turn));
  };
  std::conditional_t<Scorer, TeamScorer<T, packs>, NoScorer> scorer(l);
  if (threadIdx.x < team_stages) Arrival(&barriers[threadIdx.x]).init();
  __syncthreads();
  Output output(a, blockIdx.x, leaf_of(blockIdx.x));
  fetch(output, blockIdx.x, 0);
  auto leaf = leaf_of(blockIdx.x + gridDim.x);
  unsigned turn = 0;
  for (std::int64_t slot = blockIdx.x; slot < outputs; slot += gridDim.x, ++turn) {
    const Output next(a, slot + gridDim.x, leaf);
    fetch(next, slot + gridDim.x, turn + 1);
    leaf = leaf_of(slot + 2 * gridDim.x);
    const T* stage = stage_of(turn);
    arrival_of(turn).wait(turn / team_stages % 2);
    const float dot = output.dot(stage, a.width, sums[turn % 2]);
    const double score = isnan(output.score) ? -infinity() : output.score;
    const double gradient =
        leaf_gradient<Rounds>(score, output.weight != 0 ? dot : 0, output.valid, output.slot_gradient, log2_base);
    float gain = 0;
    if constexpr (Scorer) {
      gain = output.counts ? logit_gain(static_cast<float>(output.score), l.floor, static_cast<float>(gradient)) : 0;
      scorer.bias += gain;
    } else if (threadIdx.x < leaves && output.row < a.length) {
      set_score_gradient(a, output.first_row + output.row, output.counts ? gradient : 0);
    }
    // Zero times what is not finite is not left out by itself.
    const bool finite = __all_sync(0xffffffffu, isfinite(dot) && output.all_read());
    const auto give = [&](int c, bool careful) {
      const int row = __shfl_sync(0xffffffffu, output.row, c);
      const float share = __shfl_sync(0xffffffffu, output.weight, c), own_gain = __shfl_sync(0xffffffffu, gain, c);
      float row_gradient[packs][Row::V] = {};
      if (!careful || share != 0) output.out.add_to(row_gradient, share);
      if constexpr (Scorer)
        if (!careful || own_gain != 0) {
          Row x;
          x.read(stage + c * a.width, a.width);
          scorer.learn(x, own_gain, l.precision, row_gradient);
        }
      T* to = static_cast<T*>(a.x_gradient) + (output.first_row + row) * a.width;
      if (!careful || row < a.length) Row::write(row_gradient, to, a.width);
    };
    if (finite) {
#pragma unroll
      for (int c = 0; c < leaves; ++c) give(c, false);
    } else {
#pragma unroll 1
      for (int c = 0; c < leaves; ++c) give(c, true);
    }
    output = next;
    __syncthreads();  // the stage is free
  }
  if constexpr (Scorer) scorer.write(static_cast<float*>(l.partial_sums) + blockIdx.x * (a.width + 1), a.width, leaves);
}

/// How teams are launched. No kernel: they take no such rows.
struct TeamLaunch {
  const void* kernel = nullptr;
  unsigned threads = 0, blocks = 0;
  std::size_t bytes = 0;

  void run(const SuccessiveHalvingLayerArguments& l, cudaStream_t stream) const {
    double log2_base = std::log2(l.pooling.base);
    void* arguments[] = {const_cast<SuccessiveHalvingLayerArguments*>(&l), &log2_base};
    cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, bytes, stream);
  }
};

/// Kernel and threads of a team for outputs of 2^rounds leaves and rows of that width.
template <class T, bool Scorer, int Rounds = team_most_rounds>
TeamLaunch team_of(int rounds, std::int64_t width) {
  if constexpr (Rounds > 0) {
    if (rounds != Rounds) return team_of<T, Scorer, Rounds - 1>(rounds, width);
    constexpr std::int64_t columns = 32 * 16 / sizeof(T) * team_packs<T, Rounds>;
    const auto warps = (width + columns - 1) / columns;
    if (warps <= team_most_warps)
      return {reinterpret_cast<const void*>(team_backward_kernel<T, Rounds, Scorer>), static_cast<unsigned>(32 * warps)};
  }
  return {};
}

template <class T, int V, bool Scorer>
TeamLaunch team_launch_of(const SuccessiveHalvingArguments& a) {
  // Of the rows' bytes, beyond which so few teams are at work at once that others take no longer.
  constexpr std::int64_t most_bytes = (Scorer ? 100 : 48) * 1024;
  const auto bytes = team_stages * (a.width << a.rounds) * static_cast<std::int64_t>(sizeof(T));
  TeamLaunch launch;
  if constexpr (V > 1 && !std::is_same_v<T, double>)
    if (bytes <= most_bytes) launch = team_of<T, Scorer>(a.rounds, a.width);
  if (!launch.kernel) return launch;
  launch.bytes = static_cast<std::size_t>(bytes);
  cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.bytes));
  const auto at_once = blocks_at_once(launch.kernel, static_cast<int>(launch.threads), launch.bytes);
  launch.blocks = static_cast<unsigned>(even_blocks(a.batch * a.slots, at_once));
  return launch;
}

}  // namespace transpool
